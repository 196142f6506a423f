"""Which files of a model's folder are its tokenizer, and how they are read."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar

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

Kind = TypeVar("Kind")


def is_tokenizer_file(path: PurePath) -> bool:
    """Return whether a file, by its path in the model's folder, belongs to the tokenizer."""
    if len(path.parts) > 1:
        return False
    return path.name in _NAMES or path.suffix == ".tiktoken" or path.stem.startswith("tokenization")


def is_template_file(path: PurePath) -> bool:
    """Return whether a file, by its path in the model's folder, holds chat templates."""
    return path.name in (TEMPLATE, TEMPLATE_JSON) or path.parts[:1] == (MORE_TEMPLATES,)


@contextmanager
def many_objects() -> Iterator[None]:
    """Hold off the search for garbage: of a vocabulary's objects none is, and it takes long."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None where there is no such file.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    return read_as(path, json.loads, dict)


def read_as(path: Path, parse: Callable[[bytes], Any], kind: type[Kind]) -> Kind | None:
    """Return what `parse` makes of the JSON object in a file, None where there is no such file.

    Raises:
        DataError: the file cannot be read, or `parse` makes something else than `kind` of it.
    """
    if not path.is_file():
        return None
    hint = "fetch it again, or take it from the model that this one was made from"
    try:
        with many_objects():
            value = parse(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"`{path}` does not hold valid JSON: {error}", hint=hint) from error
    if not isinstance(value, kind):
        raise DataError(f"`{path}` does not hold a JSON object", hint=hint)
    return value
