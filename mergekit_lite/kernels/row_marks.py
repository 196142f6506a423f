"""Which entries of each row a random drop has kept, a bit each: so that rows are ranked once.

A row's bits begin at a byte of their own. Entry j of a row that takes n bytes has bit j // n of
byte j % n, so that runs of bytes stand for runs of entries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined

_NONE = np.uint8(0)
_ZERO = np.float32(0.0)


def marked_bytes(width: int, rows: int) -> int:
    """Return the memory that the marks of so many rows take."""
    return (width + 7) // 8 * rows


@inlined
def mark_rows(
    x: NDArray[np.float32], n: int, first: int, width: int, marks: NDArray[np.uint8]
) -> None:
    """Mark the entries of whole rows that are no +0.0; `first` is the flat index of `x[0]`."""
    held, bits = (width + 7) >> 3, x.view(np.uint32)
    for row in range(n // width):
        begin = (first // width + row) * held
        own, some = marks[begin : begin + held], bits[row * width : (row + 1) * width]
        for k in range(held):
            own[k] = _NONE
        for bit in range(8):
            low, one = bit * held, np.uint8(1 << bit)
            part = some[low : min(low + held, width)]
            for k in range(len(part)):
                own[k] = np.uint8(own[k] | (one if part[k] != np.uint32(0) else _NONE))


@inlined
def keep_marked(
    x: NDArray[np.float32],
    n: int,
    first: int,
    width: int,
    marks: NDArray[np.uint8],
    factor: np.float32,
) -> None:
    """Multiply the marked entries of whole rows by `factor` and set the others to zero."""
    held = (width + 7) >> 3
    for row in range(n // width):
        begin = (first // width + row) * held
        own, some = marks[begin : begin + held], x[row * width : (row + 1) * width]
        for bit in range(8):
            low, one = bit * held, np.uint8(1 << bit)
            part = some[low : min(low + held, width)]
            for k in range(len(part)):
                part[k] = part[k] * factor if np.uint8(own[k] & one) != _NONE else _ZERO
