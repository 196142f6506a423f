"""Tokenizers small enough to read, of each kind that models use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mergekit_lite.tokenizer import Tokens
from mergekit_lite.tokenizer.document import Document, edited, parsed
from mergekit_lite.tokenizer.read import tokens_in
from mergekit_lite.tokenizer.unite import additions, new_tokens


def read(data: dict[str, Any], indent: int | None = None) -> Tokens:
    document = parsed(json.dumps(data, indent=indent).encode())
    assert isinstance(document, Document)
    return tokens_in(document)


def unite(
    base: dict[str, Any],
    others: Sequence[dict[str, Any]],
    more: Sequence[dict[str, Any]] = (),
    indent: int | None = None,
) -> Any:
    """Return the content of the text that a union writes."""
    found = added_to(read(base, indent), [read(other) for other in others], more)
    return json.loads(edited(json.dumps(base, indent=indent), found.get("edits", ())))


def added_to(
    base: Tokens, others: Sequence[Tokens], more: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Return what a union adds to a tokenizer."""
    asked = {entry["content"]: number for number, entry in enumerate(more)}
    new = new_tokens(base.ids, [*(other.ids for other in others), asked])
    return additions(base, others, new, more)


def added(content: str, number: int, *, special: bool = True) -> dict[str, Any]:
    return {
        "id": number, "content": content, "single_word": False, "lstrip": False,
        "rstrip": False, "normalized": False, "special": special,
    }  # fmt: skip


def word_level(words: Sequence[str], more: Sequence[tuple[str, int]] = ()) -> dict[str, Any]:
    """Return the `tokenizer.json` of whole words with further added tokens."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(content, number) for content, number in more],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": words[0],
        },
    }


def bpe(
    letters: str, merges: Sequence[tuple[str, str]], more: Sequence[tuple[str, int]] = ()
) -> dict[str, Any]:
    """Return the `tokenizer.json` of letters and what their merges make."""
    words = [*letters, *("".join(pair) for pair in merges)]
    data = word_level(words, more)
    data["model"] = {
        "type": "BPE",
        "vocab": {word: number for number, word in enumerate(words)},
        "merges": [list(pair) for pair in merges],
        "unk_token": None,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return data


def unigram(
    pieces: Sequence[tuple[str, float]], more: Sequence[tuple[str, int]] = ()
) -> dict[str, Any]:
    """Return the `tokenizer.json` of pieces with scores."""
    data = word_level([piece for piece, _ in pieces], more)
    data["model"] = {
        "type": "Unigram", "unk_id": 0, "vocab": [list(pair) for pair in pieces],
        "byte_fallback": False,
    }  # fmt: skip
    return data
