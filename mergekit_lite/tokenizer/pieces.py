"""The pieces of a sentencepiece model, read from its protocol buffer."""

from __future__ import annotations

from pathlib import Path

from mergekit_lite.errors import DataError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_pieces(path: Path) -> dict[str, int]:
    """Return piece -> id of a sentencepiece model (`tokenizer.model`).

    Raises:
        DataError: the file is no such model.
    """
    data = path.read_bytes()
    try:
        fields = _fields(data, 0, len(data))
        pieces = [_text(data, *span) for number, span in fields if number == 1]
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise DataError(
            f"`{path}` is not a sentencepiece model: {error}", hint="fetch it again"
        ) from error
    return {piece: number for number, piece in enumerate(pieces)}


def _text(data: bytes, start: int, end: int) -> str:
    """Return field 1 of a piece's message: its text."""
    for number, (first, last) in _fields(data, start, end):
        if number == 1:
            return data[first:last].decode()
    return ""


def _fields(data: bytes, at: int, end: int) -> list[tuple[int, tuple[int, int]]]:
    """Return (number, span) of the fields of a message; spans are empty but for byte strings."""
    found = []
    while at < end:
        key, at = _varint(data, at)
        kind, start = key & 7, at
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            size, start = _varint(data, at)
            at = start + size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"field of unknown kind {kind}")
        if at > end:
            raise ValueError("it ends in the middle of a field")
        found.append((key >> 3, (start, at) if kind == _BYTES else (at, at)))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
