"""Running text cut by its bytes, so that every model sees the same pieces of it."""

from __future__ import annotations

from collections.abc import Iterator

WINDOW_BYTES = 512
LONGEST = 4
"""A line of more windows than this is no line of prose, and is cut."""


def windows(text: str, size: int = WINDOW_BYTES) -> list[str]:
    """Return a text in runs of whole lines of `size` bytes or more; the last one may be shorter.

    Cutting by bytes and not by tokens gives every model the same text, whatever its tokenizer.
    Lines of more than four times `size` are cut between characters. Windows of blanks are left
    out.

    Args:
        text: running text.
        size: bytes of UTF-8, 1 or more.
    """
    found: list[str] = []
    parts: list[str] = []
    nbytes = 0
    for line in _lines(text, size):
        parts.append(line)
        nbytes += len(line.encode())
        if nbytes >= size:
            found.append("".join(parts))
            parts, nbytes = [], 0
    found.append("".join(parts))
    return [window for window in found if window.strip()]


def _lines(text: str, size: int) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        if len(line.encode()) <= LONGEST * size:
            yield line
            continue
        part, nbytes = "", 0
        for character in line:
            part += character
            nbytes += len(character.encode())
            if nbytes >= size:
                yield part
                part, nbytes = "", 0
        if part:
            yield part
