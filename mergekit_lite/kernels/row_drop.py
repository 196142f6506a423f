"""The drop by rank in a row (`magprune`): a radix sort of each row, then one draw an entry."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined
from mergekit_lite.kernels.steps import MAGNITUDE, mixed

_BINS: Final = 2048
_BITS: Final = 11

_ALL = np.float64(2.0**32)


@inlined
def place_by_digit(
    bits: NDArray[np.uint32],
    source: NDArray[np.uint32],
    target: NDArray[np.uint32],
    width: int,
    shift: int,
    bins: NDArray[np.int64],
) -> None:
    """Write the columns of `source` to `target` in the order of one digit; equal ones stay so."""
    bins[:] = 0
    low, mask = np.uint32(shift), np.uint32(_BINS - 1)
    for i in range(width):
        bins[((bits[i] & MAGNITUDE) >> low) & mask] += 1
    start = 0
    for digit in range(_BINS):
        count = bins[digit]
        bins[digit] = start
        start += count
    for i in range(width):
        column = source[i]
        digit = ((bits[column] & MAGNITUDE) >> low) & mask
        target[bins[digit]] = column
        bins[digit] += 1


@inlined
def drop_rows(
    x: NDArray[np.float32],
    n: int,
    first: int,
    width: int,
    key_low: int,
    key_high: int,
    least: float,
    spread: float,
    divided: bool,
    scratch: NDArray[np.int64],
) -> None:
    """Keep the entry of rank r in each row with the chance least + spread * r / (width - 1).

    What is kept is divided by its chance if `divided`; `scratch` is memory of `row_scratch`.
    """
    bins = scratch[:_BINS]
    both = scratch[_BINS:].view(np.uint32)
    order, other = both[:width], both[width : 2 * width]
    chance = other.view(np.float32)
    steps = np.float64(max(width - 1, 1))
    for row in range(0, n, width):
        part = x[row : row + width]
        bits = part.view(np.uint32)
        for i in range(width):
            other[i] = np.uint32(i)
        place_by_digit(bits, other, order, width, 0, bins)
        place_by_digit(bits, order, other, width, _BITS, bins)
        place_by_digit(bits, other, order, width, 2 * _BITS, bins)
        for rank in range(width):
            chance[order[rank]] = np.float32(least + spread * np.float64(rank) / steps)
        done = 0
        while done < width:
            # The high word of the flat index is constant up to the next multiple of 2**32.
            flat = first + row + done
            high = flat >> 32
            stop = min(width, done + ((high + 1) << 32) - flat)
            counter = np.uint32((flat + key_low) & 0xFFFFFFFF)
            salt = np.uint32((key_high ^ (high * 0x9E3779B9)) & 0xFFFFFFFF)
            some, odds = part[done:stop], chance[done:stop]
            for i in range(stop - done):
                draw = mixed(np.uint32(mixed(np.uint32(counter + np.uint32(i))) ^ salt))
                kept = np.float64(draw) < np.float64(odds[i]) * _ALL
                scaled = np.float32(some[i] / odds[i]) if divided else some[i]
                some[i] = scaled if kept else np.float32(0.0)
            done = stop
