"""Which token has which id, from a tokenizer's files alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mergekit_lite.errors import DataError
from mergekit_lite.tokenizer.document import Document, parsed
from mergekit_lite.tokenizer.files import (
    ADDED,
    PIECES,
    SETTINGS,
    TOKENIZER_JSON,
    VOCAB_JSON,
    VOCAB_TEXT,
    read_as,
    read_object,
)
from mergekit_lite.tokenizer.pieces import read_pieces

_HEAD = 1 << 20
_ID = re.compile(rb'"id"\s*:\s*(\d+)')
_COMPARED = (TOKENIZER_JSON, SETTINGS, ADDED, VOCAB_JSON, VOCAB_TEXT, *PIECES)


@dataclass(frozen=True)
class Tokens:
    """The vocabulary of one model.

    Attributes:
        ids: token -> id, in order of ids.
        origin: the file that most of it comes from.
        document: `tokenizer.json`, where it is that file.
    """

    ids: Mapping[str, int] = field(repr=False)
    origin: str
    document: Document | None = field(default=None, repr=False)

    @property
    def data(self) -> Mapping[str, Any] | None:
        """The content of `tokenizer.json`, where it is that file."""
        return self.document.data if self.document else None

    @cached_property
    def by_id(self) -> dict[int, str]:
        """Id -> token."""
        return {number: token for token, number in self.ids.items()}

    @cached_property
    def highest(self) -> int:
        """The highest id, -1 where there are no tokens."""
        return max(self.ids.values(), default=-1)


def read_tokens(folder: Path) -> Tokens | None:
    """Return a model's tokens, None where its folder has no vocabulary that can be read.

    Read are `tokenizer.json`, else `vocab.json`, `vocab.txt` or a sentencepiece model; with each
    of them the tokens that `added_tokens.json` and `tokenizer_config.json` add.

    Raises:
        DataError: one of the files is damaged.
    """
    if not folder.is_dir():
        return None
    document = read_as(folder / TOKENIZER_JSON, parsed, Document)
    if document is not None:
        return tokens_in(document, _added(folder), str(folder / TOKENIZER_JSON))
    found = _vocabulary(folder)
    if found is None:
        return None
    ids, origin = found
    for token, (number, _) in _added(folder).items():
        ids.setdefault(token, number)
    return Tokens(_by_id(ids), origin)


def highest_added(folder: Path) -> int:
    """Return the highest id among a model's added tokens, -1 where there are none.

    Of a large `tokenizer.json` only the list of added tokens is read, which stands before the rest.
    """
    numbers = [number for number, _ in _added(folder).values()] if folder.is_dir() else []
    path = folder / TOKENIZER_JSON
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(_HEAD)
        listed = head.partition(b'"added_tokens"')[2].partition(b"]")[0]
        numbers += [int(found) for found in _ID.findall(listed)]
    return max(numbers, default=-1)


def tokens_in(
    document: Document,
    more: Mapping[str, tuple[int, Mapping[str, Any]]] = MappingProxyType({}),
    name: str = TOKENIZER_JSON,
) -> Tokens:
    """Return the tokens of a `tokenizer.json`.

    Args:
        document: what it says.
        more: tokens that files beside it add, with id and what is said of them.
        name: how errors call the file.

    Raises:
        DataError: the content is no tokenizer.
    """
    ids = tokens_of(document.data, name)
    lacking = {token: told for token, told in more.items() if token not in ids}
    if lacking:
        ids.update({token: number for token, (number, _) in lacking.items()})
        entries = [{**e, "id": n, "content": token} for token, (n, e) in lacking.items()]
        listed = [*(document.data.get("added_tokens") or ()), *entries]
        data = {**document.data, "added_tokens": listed}
        document = replace(document, data=data)
    return Tokens(_by_id(ids), TOKENIZER_JSON, document)


def plain_entry(token: str) -> dict[str, Any]:
    """Return the entry of an added token of which nothing more is known."""
    return {
        "content": token, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": token.startswith("<") and token.endswith(">"),
    }  # fmt: skip


def _by_id(ids: dict[str, int]) -> dict[str, int]:
    numbers = list(ids.values())
    return ids if numbers == sorted(numbers) else dict(sorted(ids.items(), key=itemgetter(1)))


def tokens_of(data: Mapping[str, Any], name: str = TOKENIZER_JSON) -> dict[str, int]:
    """Return token -> id of the content of a `tokenizer.json`.

    Raises:
        DataError: the content is no tokenizer.
    """
    try:
        ids = regular(data)
        ids.update({str(entry["content"]): int(entry["id"]) for entry in added(data)})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"`{name}` is not a tokenizer: {error!r}", hint="fetch it again") from error
    return ids


def regular(data: Mapping[str, Any]) -> dict[str, int]:
    """Return token -> id of a tokenizer's model, without added tokens."""
    vocab = data["model"]["vocab"]
    if isinstance(vocab, Mapping):
        return dict(vocab)
    return {str(piece[0]): number for number, piece in enumerate(vocab)}


def added(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of a tokenizer's added tokens, in order of ids."""
    return sorted(data.get("added_tokens") or (), key=lambda entry: int(entry["id"]))


def _vocabulary(folder: Path) -> tuple[dict[str, int], str] | None:
    if (vocab := read_object(folder / VOCAB_JSON)) is not None:
        return {str(k): v for k, v in vocab.items() if isinstance(v, int)}, VOCAB_JSON
    if (folder / VOCAB_TEXT).is_file():
        lines = (folder / VOCAB_TEXT).read_text(encoding="utf-8").splitlines()
        return {line: number for number, line in enumerate(lines)}, VOCAB_TEXT
    for name in PIECES:
        if (folder / name).is_file():
            return read_pieces(folder / name), name
    return None


def _added(folder: Path) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """Return the tokens that files beside the vocabulary add, with id and what is said of them."""
    found: dict[str, tuple[int, Mapping[str, Any]]] = {}
    listed = (read_object(folder / SETTINGS) or {}).get("added_tokens_decoder")
    for number, entry in (listed if isinstance(listed, Mapping) else {}).items():
        if isinstance(entry, Mapping) and str(number).isdecimal():
            token = str(entry.get("content", ""))
            found[token] = (int(number), {**plain_entry(token), **entry})
    for token, number in (read_object(folder / ADDED) or {}).items():
        if isinstance(number, int):
            found.setdefault(token, (number, plain_entry(token)))
    return found


def same_files(left: Path, right: Path) -> bool:
    """Return whether two folders hold the very same vocabulary files, and have any."""
    pairs = [(left / name, right / name) for name in _COMPARED]
    some = any(mine.is_file() for mine, _ in pairs)
    return some and all(_same(mine, other) for mine, other in pairs)


def _same(left: Path, right: Path) -> bool:
    if not left.is_file() or not right.is_file():
        return left.is_file() == right.is_file()
    return left.stat().st_size == right.stat().st_size and left.read_bytes() == right.read_bytes()
