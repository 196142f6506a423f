"""What is asked of differences before they are compressed: ranks, sums, errors."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel
from mergekit_lite.kernels.codec import decode
from mergekit_lite.kernels.lanes import sum_of_entries, sum_of_products
from mergekit_lite.kernels.marks import places_from
from mergekit_lite.kernels.steps import MAGNITUDE

UPPER: Final = 16
"""Bits of a magnitude that the first count goes by; its lowest 15 are those of the second."""
LOWER: Final = 15
BLOCK: Final = 4096
"""Entries that are worked on together, and added up together."""
_SHIFT: Final = np.uint32(LOWER)
_LOW: Final = np.uint32((1 << LOWER) - 1)


@kernel("i8", "i8", "i8[::1]", "f4[::1]", "u1[::1]", "u1[::1]", "f4[::1]")
def difference_tile(
    base_code: int,
    tuned_code: int,
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    base: NDArray[np.uint8],
    tuned: NDArray[np.uint8],
    out: NDArray[np.float32],
) -> None:
    """Write the difference of stored entries, in fp32.

    Args:
        base_code, tuned_code: dtypes, of `codec.CODES`.
        bad: entries that are not finite are added up here: the base's, the other's.
        work: scratch of 4096 entries.
        base, tuned: stored entries.
        out: tuned - base.
    """
    base_width = base.shape[0] // max(out.shape[0], 1)
    tuned_width = tuned.shape[0] // max(out.shape[0], 1)
    for start in range(0, out.shape[0], BLOCK):
        n = min(BLOCK, out.shape[0] - start)
        part = out[start : start + n]
        bad[0] += decode(base, start * base_width, base_code, work, n)
        bad[1] += decode(tuned, start * tuned_width, tuned_code, part, n)
        for i in range(n):
            part[i] = part[i] - work[i]


@inlined
def _count(
    magnitude: np.uint32,
    counts: NDArray[np.int64],
    begin: np.uint32,
    fine: NDArray[np.int64],
) -> None:
    upper = np.uint32(magnitude >> _SHIFT)
    counts[np.uint64(upper)] += 1
    row = np.uint32(upper - begin)  # of a smaller one it is far too large
    if row < np.uint32(fine.shape[0]):
        fine[np.uint64(row), np.uint64(magnitude & _LOW)] += 1


@kernel(
    "i8[::1]", "f8[::1]", "f4", "i8", "i8[:,::1]", "u4[::1]", "f4[::1]", "u1[::1]", "f4[::1]"
)  # fmt: skip
def survey_tile(
    counts: NDArray[np.int64],
    sums: NDArray[np.float64],
    least: np.float32,
    first: int,
    fine: NDArray[np.int64],
    places: NDArray[np.uint32],
    work: NDArray[np.float32],
    marks: NDArray[np.uint8],
    delta: NDArray[np.float32],
) -> None:
    """Count magnitudes by their upper bits, and add up entries and their squares.

    Args:
        counts: of 2 ** 16 upper parts of a magnitude.
        sums: of x and x squared, block by block.
        least: smaller magnitudes are not counted.
        first: the upper part that `fine` begins with.
        fine: counts by the 2 ** 15 lower parts, for some upper parts.
        places, work, marks: scratch of 4096 entries each.
        delta: differences.
    """
    begin = np.uint32(first)
    for start in range(0, delta.shape[0], BLOCK):
        n = min(BLOCK, delta.shape[0] - start)
        part = delta[start : start + n]
        bits = part.view(np.uint32)
        if least > np.float32(0.0):
            found = places_from(part, n, least, marks, places, 0, np.uint64(0))
            for k in range(found):
                place = np.uint64(places[np.uint64(k)])
                _count(np.uint32(bits[place] & MAGNITUDE), counts, begin, fine)
        else:
            for i in range(n):
                _count(np.uint32(bits[np.uint64(i)] & MAGNITUDE), counts, begin, fine)
        if n < BLOCK:  # what adds up fills the last lanes
            for i in range(n):
                work[i] = part[i]
            part = work
        sums[0] += sum_of_entries(part, part, n)
        sums[1] += sum_of_products(part, part, n)


@kernel("i8", "i8[::1]", "f8[::1]", "f4[::1]")
def refine_tile(
    upper: int, counts: NDArray[np.int64], sums: NDArray[np.float64], delta: NDArray[np.float32]
) -> None:
    """Count magnitudes of one upper part by their lower bits, and add up those beyond it.

    Args:
        upper: the upper part.
        counts: of 2 ** 15 lower parts.
        sums: of |x| and x squared, of magnitudes of a greater upper part.
        delta: differences.
    """
    bits = delta.view(np.uint32)
    shift, low = np.uint32(LOWER), np.uint32((1 << LOWER) - 1)
    wanted = np.uint32(upper)
    one, two = sums[0], sums[1]
    for i in range(delta.shape[0]):
        magnitude = np.uint32(bits[i] & MAGNITUDE)
        part = np.uint32(magnitude >> shift)
        if part == wanted:
            counts[np.uint64(magnitude & low)] += 1
        elif part > wanted:
            x = np.float64(abs(delta[i]))
            one += x
            two += x * x
    sums[0], sums[1] = one, two


@kernel("f4[::1]", "i8", "i8[::1]")
def reach_tile(delta: NDArray[np.float32], threshold: int, counts: NDArray[np.int64]) -> None:
    """Count magnitudes that are greater than a threshold, and those that equal it.

    Args:
        delta: differences.
        threshold: bits of a magnitude.
        counts: the two counts are added here.
    """
    bits = delta.view(np.uint32)
    limit = np.uint32(threshold)
    for start in range(0, delta.shape[0], 1 << 20):
        above, equal = np.uint32(0), np.uint32(0)
        for i in range(start, min(start + (1 << 20), delta.shape[0])):
            magnitude = np.uint32(bits[np.uint64(i)] & MAGNITUDE)
            above = np.uint32(above + np.uint32(magnitude > limit))
            equal = np.uint32(equal + np.uint32(magnitude == limit))
        counts[0] += np.int64(above)
        counts[1] += np.int64(equal)


@kernel("f4[::1]", "f4[::1]", "f4[:,::1]", "f8[::1]")
def error_tile(
    delta: NDArray[np.float32],
    decoded: NDArray[np.float32],
    work: NDArray[np.float32],
    sums: NDArray[np.float64],
) -> None:
    """Add up the squares of differences, and of what is missed of them.

    Args:
        delta: differences.
        decoded: what is left of them.
        work: scratch of 2 x 4096 entries.
        sums: of squares of `delta` and of `delta - decoded`, block by block.
    """
    for start in range(0, delta.shape[0], BLOCK):
        n = min(BLOCK, delta.shape[0] - start)
        own, missed = work[0], work[1]
        part, left = delta[start : start + n], decoded[start : start + n]
        for i in range(n):
            own[i] = part[i]
            missed[i] = part[i] - left[i]
        sums[0] += sum_of_products(own, own, n)
        sums[1] += sum_of_products(missed, missed, n)
