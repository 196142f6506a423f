"""Tokenizers small enough to read, of each kind that models use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mergekit_lite.tokenizer import Tokens
from mergekit_lite.tokenizer.document import Document, parsed, spliced
from mergekit_lite.tokenizer.read import tokens_in
from mergekit_lite.tokenizer.unite import additions


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
    found = additions(read(base, indent), [read(other) for other in others], more)
    text = json.dumps(base, indent=indent)
    return json.loads(spliced(text, found) if found else text)


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
