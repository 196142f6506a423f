"""A tokenizer in the words of llama.cpp, from the files that lie beside a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""Kinds of tokens, as llama.cpp numbers them."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLITS = {
    rf"{_SHORT}|{_LETTERS}|\p{{N}}{{1,3}}|{_TAIL}": "llama-bpe",
    rf"{_SHORT}|{_LETTERS}|\p{{N}}|{_TAIL}": "qwen2",
}
"""Pattern by which texts are split before merges -> llama.cpp's name for it."""


class TokenizerError(ValueError):
    """A tokenizer that llama.cpp would not follow; the text says in what."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of tokens.

    Attributes:
        model: `gpt2` for pairs of bytes, `llama` for those of SentencePiece.
        pre: how texts are split first, for `gpt2`.
        tokens, kinds: by id.
        scores: by id, for `llama`.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]


def vocabulary(folder: Path, rows: int) -> Vocabulary | None:
    """Return the tokens of a model's tokenizer.json; None where it has no such file.

    Args:
        folder: of the model.
        rows: of its embedding; ids without a token are filled up.

    Raises:
        TokenizerError: llama.cpp would make other tokens of a text.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    model = data.get("model") or {}
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"its tokenizer is of type `{model.get('type')}`, not pairs (BPE)")
    added = {int(t["id"]): t for t in data.get("added_tokens") or ()}
    known = {int(n): token for token, n in (model.get("vocab") or {}).items()}
    known |= {n: str(token["content"]) for n, token in added.items()}
    if known and max(known) >= rows:
        raise TokenizerError(f"token {max(known)} lies beyond the {rows} rows of the embedding")
    pre = _split(data)
    tokens, kinds = [], []
    for number in range(rows):
        tokens.append(known.get(number, f"[PAD{number}]"))
        kinds.append(_kind(number, known, added, pre))
    scores = [] if pre else _scores(model, tokens)
    return Vocabulary("gpt2" if pre else "llama", pre, tokens, kinds, scores)


def _kind(number: int, known: Mapping[int, str], added: Mapping[int, Any], pre: str) -> int:
    if number not in known:
        return UNUSED
    if number in added:
        return CONTROL if added[number].get("special") else USER_DEFINED
    return BYTE if not pre and _BYTE.fullmatch(known[number]) else NORMAL


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """Return scores by which pairs are merged in the order of the tokenizer's list."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model.get("merges") or ()):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, 0)) for token in tokens]


def _split(data: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how texts are split before merges; empty for SentencePiece."""
    steps = _steps(data.get("pre_tokenizer"))
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" not in kinds:
        if (data.get("model") or {}).get("byte_fallback"):
            return ""
        raise TokenizerError("its tokenizer neither works on bytes nor falls back to them")
    pattern = next((_pattern(step) for step in steps if step.get("type") == "Split"), "")
    if pattern in _SPLITS:
        return _SPLITS[pattern]
    level = next(step for step in steps if step.get("type") == "ByteLevel")
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["ByteLevel"] and level.get("use_regex", True):
        return "gpt-2"
    raise TokenizerError("its tokenizer splits texts in a way that is not known here")


def _steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if step.get("type") == "Sequence":
        return [inner for each in step.get("pretokenizers") or () for inner in _steps(each)]
    return [step]


def _pattern(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern") or {}
    return str(pattern.get("Regex", pattern.get("String", "")))
