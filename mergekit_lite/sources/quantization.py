"""Reads quantised checkpoints as the plain ones they stand for, or says why that cannot be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint import Header, Reading, as_plain
from mergekit_lite.errors import Problem
from mergekit_lite.sources._types import Model
from mergekit_lite.sources.companions import companions_of

LEFT_OUT = frozenset({"hf_quant_config.json", "quantize_config.json", "quant_config.json"})
"""Files beside quantised weights that are of no use, and misleading, beside plain ones."""

_BASE_MODEL = re.compile(r"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?['\"]?([\w.-]+/[\w.-]+)", re.M)


def read_quantised(
    header: Header, config: Mapping[str, Any] | None, root: Path
) -> tuple[Reading, tuple[Problem, ...]]:
    """Return how a checkpoint is read, and what keeps it from being merged.

    Args:
        header: as it is stored.
        config: its `config.json`.
        root: its folder, whose model card may name the model it was made from.
    """
    reading = as_plain(header, config)
    problems = tuple(
        Problem(
            f"quantised ({reading.format}): {fault}",
            hint=f"merging needs the 16-bit checkpoint that it was made from{_base_model(root)}",
        )
        for fault in reading.faults
    )
    return reading, problems


def as_stored(model: Model) -> Model:
    """Return a quantised model as the codes and scales that it stores, any other as it is."""
    if model.stored is None:
        return model
    return replace(
        model,
        header=model.stored,
        quantization="",
        unreadable=(),
        companions=companions_of(model.root),
        stored=None,
    )


def _base_model(root: Path) -> str:
    """Return what the model card says that a model was made from, in words."""
    try:
        text = (root / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    match = _BASE_MODEL.search(head)
    return f": its model card names `{match[1]}`" if match else ""
