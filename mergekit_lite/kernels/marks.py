"""Entries that are marked, a byte each, found eight at a time: most words of marks are zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined
from mergekit_lite.kernels.words import trailing_zeros

_BYTES = np.uint64(0x0001020304050607)
_ONE = np.uint64(1)


@inlined
def first_mark(marks: np.uint64) -> tuple[np.uint64, int]:
    """Return the lowest mark of a word that has one, and which byte it is."""
    lowest = np.uint64(marks & (~marks + _ONE))
    # The number of its byte: shifted so far, the byte on top is just that.
    return lowest, int(np.uint64(lowest * _BYTES) >> np.uint64(56))


@inlined
def places_from(
    entries: NDArray[np.float32],
    n: int,
    least: np.float32,
    marks: NDArray[np.uint8],
    places: NDArray[np.uint32],
    first: int,
    filled: np.uint64,
) -> np.uint64:
    """Append `first` and more for entries whose magnitude is `least` or greater.

    Args:
        entries, n: the first `n` are looked at.
        least: see above.
        marks: scratch, a multiple of 8 and `n` at least.
        places: room for what is found.
        first: the place of the first entry.
        filled: how many places there are already.

    Returns:
        How many there are now.
    """
    for i in range(n):
        marks[i] = np.uint8(abs(entries[i]) >= least)
    words = (n + 7) // 8
    for i in range(n, 8 * words):
        marks[i] = np.uint8(0)
    masks = marks[: 8 * words].view(np.uint64)
    for word in range(words):
        found = masks[word]
        while found != np.uint64(0):
            at = np.uint64(trailing_zeros(found) >> np.uint64(3))
            places[filled] = np.uint32(np.uint64(first + 8 * word) + at)
            filled += _ONE
            found = np.uint64(found & (found - _ONE))
    return filled
