"""The text of a `tokenizer.json`: what it says, and where tokens can be put into it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from json import JSONDecodeError, JSONDecoder
from typing import Any

Span = tuple[int, int]
"""Where a value begins in a text, and where it ends."""
Edits = list[tuple[int, int, str]]
"""What stands in place of which spans of a text, in order."""

ADDED_TOKENS, VOCAB, MERGES = "added_tokens", "model.vocab", "model.merges"

_SPACE = re.compile(r"[ \t\n\r]*")
_COLON = re.compile(r'"(?:[^"\\]|\\.)*"([ \t\n\r]*:[ \t\n\r]*)')
_value = JSONDecoder().raw_decode


@dataclass(frozen=True)
class Document:
    """The content of a `tokenizer.json`.

    Attributes:
        data: what it says, with the tokens that files beside it add.
        text: in which it says so.
        places: where in its text the lists are that tokens are added to.
        sha256: of its bytes, so that the places are not looked up in another text.
    """

    data: dict[str, Any] = field(repr=False)
    text: str = field(repr=False)
    places: Mapping[str, Span]
    sha256: str


def parsed(raw: bytes) -> Document | Any:
    """Return the content of a file, or the value in it, if that is no object.

    Raises:
        ValueError: it is not JSON.
    """
    text = decoded(raw)
    at = _space(text, 0)
    if text[at : at + 1] != "{":
        return json.loads(text)
    places: dict[str, Span] = {}
    data, end = _members(text, at, "", ("model",), places)
    if _space(text, end) < len(text):
        raise JSONDecodeError("Extra data", text, end)
    kept = {key: places[key] for key in (ADDED_TOKENS, VOCAB, MERGES) if key in places}
    return Document(data, text, kept, sha256(raw).hexdigest())


def decoded(raw: bytes) -> str:
    """Return the text that the places in it are counted in."""
    return raw.decode("utf-8-sig", "surrogatepass")


def edits(document: Document, added: Sequence[Any], entries: Mapping[str, Sequence[Any]]) -> Edits:
    """Return what to change in the text, so that all else stays as it is.

    Writing all of it anew would take as long as the rest of a union of large vocabularies.

    Args:
        document: the tokenizer.
        added: the whole list of added tokens.
        entries: what is put behind the pieces (`VOCAB`) and the merges (`MERGES`) of the model.
    """
    new = json.dumps(added, ensure_ascii=False, separators=(",", ":"))
    if place := document.places.get(ADDED_TOKENS):
        found = [(*place, new)]
    else:
        first = _space(document.text, 0) + 1
        found = [(first, first, f'"{ADDED_TOKENS}":{new},')]
    found += [_appended(document.text, document.places[key], e) for key, e in entries.items() if e]
    return sorted(found)


def edited(text: str, changes: Iterable[Sequence[Any]]) -> str:
    """Return a text with changes made; they stand in order."""
    result, at = [], 0
    for start, end, new in changes:
        result += [text[at:start], new]
        at = end
    return "".join([*result, text[at:]])


def _appended(text: str, place: Span, entries: Sequence[Any]) -> tuple[int, int, str]:
    """Return how entries are put behind those of a list or mapping, spaced as the first is."""
    start, end = place
    first = _space(text, start + 1)
    keyed = text[start] == "{"
    colon = _COLON.match(text, first) if keyed else None
    spaced = ("," + text[start + 1 : first], colon[1] if colon else ":")
    value = dict(entries) if keyed else entries
    new = json.dumps(value, ensure_ascii=False, separators=spaced)[1:-1]
    if first == end - 1:
        return first, first, new
    last = end - 1
    while text[last - 1] in " \t\n\r":
        last -= 1
    return last, last, spaced[0] + new


def _members(
    text: str, at: int, prefix: str, inside: Collection[str], places: dict[str, Span]
) -> tuple[dict[str, Any], int]:
    """Return the object that begins at a place and where it ends; enter the places of its values.

    Args:
        text: JSON text.
        at: place of the opening brace.
        prefix: what stands before the names of its values in `places`.
        inside: keys of objects whose values are entered too.
        places: is filled.
    """
    found: dict[str, Any] = {}
    at = _space(text, at + 1)
    while text[at : at + 1] != "}":
        if found:
            at = _past(text, at, ",")
        if text[at : at + 1] != '"':
            raise JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        key, at = _value(text, at)
        start = _past(text, _space(text, at), ":")
        if key in inside and text[start : start + 1] == "{":
            found[key], at = _members(text, start, f"{prefix}{key}.", (), places)
        else:
            found[key], at = _value(text, start)
        places[prefix + key] = start, at
        at = _space(text, at)
    return found, at + 1


def _past(text: str, at: int, mark: str) -> int:
    if text[at : at + 1] != mark:
        raise JSONDecodeError(f"Expecting '{mark}' delimiter", text, at)
    return _space(text, at + 1)


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
