"""Which files of a model's folder are its tokenizer, and how they are read."""

from __future__ import annotations

import gc
import json
from pathlib import Path, PurePath
from typing import Any

from mergekit_lite.errors import DataError

TOKENIZER_JSON = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
ADDED = "added_tokens.json"
VOCAB_JSON = "vocab.json"
MERGES = "merges.txt"
VOCAB_TEXT = "vocab.txt"
TEMPLATE = "chat_template.jinja"
TEMPLATE_JSON = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates"
PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
"""Binary vocabularies of the sentencepiece library."""

_NAMES = frozenset(
    {
        TOKENIZER_JSON, SETTINGS, ADDED, VOCAB_JSON, MERGES, VOCAB_TEXT, *PIECES,
        "special_tokens_map.json", "vocab.bpe", "encoder.json", "tekken.json",
    }
)  # fmt: skip


def is_tokenizer_file(path: PurePath) -> bool:
    """Return whether a file, by its path in the model's folder, belongs to the tokenizer."""
    if len(path.parts) > 1:
        return False
    return path.name in _NAMES or path.suffix == ".tiktoken" or path.stem.startswith("tokenization")


def is_template_file(path: PurePath) -> bool:
    """Return whether a file, by its path in the model's folder, holds chat templates."""
    return path.name in (TEMPLATE, TEMPLATE_JSON) or path.parts[:1] == (MORE_TEMPLATES,)


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None where there is no such file.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    if not path.is_file():
        return None
    hint = "fetch it again, or take it from the model that this one was made from"
    collecting = gc.isenabled()
    gc.disable()  # a vocabulary is so many objects that looking for garbage takes a quarter longer
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"`{path}` does not hold valid JSON: {error}", hint=hint) from error
    finally:
        if collecting:
            gc.enable()
    if not isinstance(value, dict):
        raise DataError(f"`{path}` does not hold a JSON object", hint=hint)
    return value
