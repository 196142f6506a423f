"""Entries that are codes of 1 to 8 bits with scales, and entries of two masks of bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import kernel

_ONE = np.uint64(1)
_THREE = np.uint64(3)
_SEVEN = np.uint64(7)


@kernel("u1[::1]", "i8", "i8", "f4[::1]", "f4[:,::1]", "i8", "i8", "i8", "f4[::1]")
def codes_tile(
    raw: NDArray[np.uint8],
    skip: int,
    bits: int,
    table: NDArray[np.float32],
    scales: NDArray[np.float32],
    width: int,
    group: int,
    first: int,
    out: NDArray[np.float32],
) -> None:
    """Write entries from `first` on: what each code stands for, times its scale.

    Args:
        raw: codes, packed from the lowest bit of a byte on.
        skip: bits of `raw` before the first code that is wanted.
        bits: of a code; where 8 is no multiple, a byte behind the last code is looked at.
        table: what each code stands for.
        scales: a line for each row (or one for all), a column for each group.
        width: entries of a row.
        group: entries of a row that share a scale.
        first: flat index of the first entry.
        out: the entries.
    """
    wide, mask = np.uint64(bits), np.uint64((1 << bits) - 1)
    across = 8 % bits != 0
    done, count = 0, out.shape[0]
    while done < count:
        row, column = (first + done) // width, (first + done) % width
        cell = column // group
        end = min(min((cell + 1) * group, width) - column, count - done)
        scale = scales[row if scales.shape[0] > 1 else 0, cell]
        bit = np.uint64(skip) + np.uint64(done) * wide
        for i in range(end):
            byte = np.uint64(raw[bit >> _THREE])
            if across:
                byte |= np.uint64(np.uint64(raw[(bit >> _THREE) + _ONE]) << np.uint64(8))
            code = np.uint64(byte >> (bit & _SEVEN)) & mask
            out[np.uint64(done + i)] = table[code] * scale
            bit += wide
        done += end


@kernel("u1[::1]", "u1[::1]", "i8", "f4", "f4[::1]")
def masks_tile(
    plus: NDArray[np.uint8],
    minus: NDArray[np.uint8],
    skip: int,
    scale: np.float32,
    out: NDArray[np.float32],
) -> None:
    """Write `scale` where the first mask has a one, `-scale` where the second has, 0 elsewhere.

    Args:
        plus, minus: masks, from the lowest bit of a byte on.
        skip: bits of the masks before the first that is wanted.
        scale: see above.
        out: the entries.
    """
    for i in range(out.shape[0]):
        at = np.uint64(skip + i)
        byte, bit = at >> _THREE, at & _SEVEN
        up = np.uint64(np.uint64(plus[byte]) >> bit) & _ONE
        down = np.uint64(np.uint64(minus[byte]) >> bit) & _ONE
        out[np.uint64(i)] = np.float32(np.int64(up) - np.int64(down)) * scale
