"""Whether a model's embedding, head, config and tokenizer agree about its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint import TensorInfo, role_of
from mergekit_lite.errors import Problem
from mergekit_lite.export.config import CONFIG_FILE
from mergekit_lite.plan import configs
from mergekit_lite.tokenizer import read_tokens

_OF_TOKENS = ("lm_head.weight", "embed_out.weight", "output.weight")
"""Heads with a row for each token; others have one for each label."""


def vocabulary_problems(
    folder: Path, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any] | None
) -> list[Problem]:
    """Return what keeps rows, config and tokenizer of a checkpoint from fitting each other.

    Args:
        folder: of the model.
        tensors: all of its tensors.
        config: its config.json, if it has one.

    Raises:
        DataError: a file of the tokenizer is damaged.
    """
    names, rows = configs.token_tensors(tensors, config)
    if not names:
        return []
    problems = []
    named = configs.value(config, "vocab_size")
    if isinstance(named, int) and named != rows:
        what = f"vocab_size is {named}, `{names[0]}` has {rows} rows"
        problems.append(Problem(what, CONFIG_FILE))
    width = tensors[names[0]].shape[1:]
    for name, info in tensors.items():
        is_head = role_of(name) == "head" and name.endswith(_OF_TOKENS)
        if is_head and info.shape[1:] == width and info.shape[0] != rows:
            what = f"has {info.shape[0]} rows, `{names[0]}` has {rows}"
            problems.append(Problem(what, name))
    tokens = read_tokens(folder)
    if tokens is not None and tokens.highest >= rows:
        token = tokens.by_id[tokens.highest]
        what = f"`{token}` has the id {tokens.highest}, `{names[0]}` has {rows} rows"
        problems.append(Problem(what, tokens.origin))
    return problems
