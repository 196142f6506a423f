"""Heads of classifiers: rows that stand for labels, and what the config says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.plan.configs import Config
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import Recipe

_HEADS = frozenset({"score", "classifier", "classification_head", "qa_outputs"})
_UNNAMED = re.compile(r"LABEL_\d+")
_KEYS = ("id2label", "label2id", "num_labels")


def is_class_head(name: str) -> bool:
    """Return whether a tensor belongs to a head with a row for each class."""
    return not _HEADS.isdisjoint(name.split("."))


def labels_of(config: Config) -> tuple[str, ...]:
    """Return the names of a classifier's classes in the order of their rows, none if not given."""
    listed = (config or {}).get("id2label")
    if not isinstance(listed, Mapping) or not all(str(key).isdecimal() for key in listed):
        return ()
    return tuple(str(listed[key]) for key in sorted(listed, key=lambda key: int(str(key))))


def same_classes(
    view: View, base: View, info: TensorInfo, recipe: Recipe, findings: Findings
) -> bool:
    """Note a head whose rows stand for other classes than the base's; return whether it fits."""
    shape = view.shape(info.name)
    if view.name == "base" or shape is None or not is_class_head(info.name):
        return True
    mine, theirs = labels_of(view.model.config), labels_of(base.model.config)
    named = mine and theirs and not any(map(_UNNAMED.fullmatch, (*mine, *theirs)))
    if shape == info.shape and not (named and mine != theirs):
        return True
    if shape[1:] != info.shape[1:]:
        return True  # of another width, which is told as such
    begin = next(part for part in info.name.split(".") if part in _HEADS)
    findings.problem_with(
        f"`{info.name}`",
        f"expert `{view.name}` tells other classes apart than the base"
        f" ({_text(mine, shape)}; base {_text(theirs, info.shape)})",
        recipe.at("experts", view.name),
        f"choose whose head it shall be: `rules: [{{match: '*{begin}*', take: {view.name}}}]`, or"
        " `take: base`",
    )
    return False


def _text(labels: tuple[str, ...], shape: tuple[int, ...]) -> str:
    shown = ", ".join(labels[:4]) + (", ..." if len(labels) > 4 else "")
    count = len(labels) or (shape[0] if shape else 0)
    return f"{count} classes" + (f": {shown}" if shown else "")


def class_changes(
    heads: Mapping[str, tuple[str, tuple[int, ...]]],
    found: Mapping[str, View],
    recipe: Recipe,
    findings: Findings,
) -> dict[str, Any]:
    """Return what the config must say of the classes of a head that was taken from an expert.

    Args:
        heads: tensor of a head -> whose it is and its shape in the output.
        found: the base and the experts.
        recipe: for the place of a problem.
        findings: where heads of several inputs are noted.
    """
    sources = {source for source, _ in heads.values()}
    known = {labels_of(found[source].model.config) for source in sources}
    rows = {shape[0] for _, shape in heads.values() if shape}
    if len(sources) > 1 and len(known) > 1:
        listed = ", ".join(f"`{name}` of `{source}`" for name, (source, _) in heads.items())
        findings.problem(
            f"the head is put together of models with different classes: {listed}",
            recipe.at("rules"),
            "take all tensors of the head from one model",
        )
    source = next(iter(sources), "base")
    if source == "base" or len(sources) > 1:
        return {}
    config = found[source].model.config or {}
    base = found["base"].model.config or {}
    labels = labels_of(config) or tuple(f"LABEL_{row}" for row in range(min(rows, default=0)))
    made: dict[str, Any] = {
        "id2label": {str(row): label for row, label in enumerate(labels)},
        "label2id": {label: row for row, label in enumerate(labels)},
        "num_labels": len(labels),
    }
    if not base:
        return {}
    return {key: config.get(key, made[key]) for key in _KEYS if key in base or key in config} or {
        key: made[key] for key in _KEYS[:2]
    }
