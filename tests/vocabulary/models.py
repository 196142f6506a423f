"""Tiny models with tokenizers of their own, and their logits as transformers computes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mergekit_lite
from mergekit_lite.plan.types import Plan
from tests.checkpoints import read_weights, tiny_llama, write_json, write_weights
from tests.tokenizer.tokenizers import word_level

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WORDS = ("<unk>", "<s>", "</s>", "cat", "dog", "cow", "hen", "fox")


def model(
    folder: Path,
    *,
    words: Sequence[str] = WORDS,
    more: Sequence[str] = (),
    rows: int = 0,
    seed: int = 0,
    tied: bool = True,
    dtype: str = "float32",
    ids: Mapping[str, int] | None = None,
) -> Path:
    """Write a Llama whose tokenizer has `words`, `more` as added tokens, and `rows` rows.

    With `ids`, the words are put at other numbers.
    """
    count = len(words) + len(more)
    rows = rows or count
    tiny_llama(folder, vocab=rows, seed=seed, tied=tied, dtype=dtype)
    data = word_level(words, [(token, len(words) + n) for n, token in enumerate(more)])
    if ids is not None:
        data["model"]["vocab"] = dict(ids)
    write_json(folder / "tokenizer.json", data)
    return folder


def change(folder: Path, **tensors: torch.Tensor) -> Path:
    """Replace tensors of a checkpoint; `embedding` and `head` stand for their names."""
    names = {"embedding": EMBEDDING, "head": HEAD}
    found = read_weights(folder) | {names.get(n, n): value for n, value in tensors.items()}
    return write_weights(folder, found)


def copy_of(base: Path, folder: Path, **how: Any) -> Path:
    """Write a model with the base's weights and another vocabulary; new rows are its own."""
    model(folder, **how)
    mine, theirs = read_weights(folder), read_weights(base)
    ids, base_ids = tokens(folder), tokens(base)
    for name in (EMBEDDING, HEAD):
        if name not in mine or name not in theirs:
            continue
        value = mine[name].clone()
        for token, row in ids.items():
            if row < len(value) and base_ids.get(token, len(theirs[name])) < len(theirs[name]):
                value[row] = theirs[name][base_ids[token]]
        theirs[name] = value
    if HEAD in mine and HEAD not in theirs:
        theirs[HEAD] = mine[HEAD]
    return write_weights(folder, theirs)


def tokens(folder: Path) -> dict[str, int]:
    from mergekit_lite.tokenizer import read_tokens

    found = read_tokens(folder)
    assert found is not None
    return dict(found.ids)


def merge(root: Path, out: str = "out", **recipe: Any) -> Plan:
    """Merge `base` and the experts that the recipe names (or `math`) below `root` into `out`."""
    experts = recipe.pop("experts", ("math",))
    given = {
        "base": str(root / "base"),
        "experts": {n: {"model": str(root / n), "weight": 0.5} for n in experts},
        "steps": ["task_arithmetic"],
        "output": {"dtype": "float32"},
        **recipe,
    }
    plan = mergekit_lite.plan(given)
    mergekit_lite.run(plan, root / out)
    return plan


def logits(folder: Path, words: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return token -> logits over a text of words, as loaded by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer.convert_tokens_to_ids(list(words))
    with torch.no_grad():
        found = loaded(torch.tensor([ids])).logits[0]
    return {token: found[:, row] for token, row in tokenizer.get_vocab().items()}


def require_sound(folder: Path) -> None:
    """Check that rows, config and tokenizer of a checkpoint agree."""
    config = json.loads((folder / "config.json").read_text())
    found = read_weights(folder)
    rows = found[EMBEDDING].shape[0]
    assert config["vocab_size"] == rows
    assert HEAD not in found or found[HEAD].shape[0] == rows
    assert (HEAD in found) == (not config["tie_word_embeddings"])
    assert max(tokens(folder).values()) < rows
