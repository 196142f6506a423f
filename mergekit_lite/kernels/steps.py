"""Transforms on one block of one expert's delta; each is the twin of an op of the same name."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined

IDENTITY: Final = 0
CUT: Final = 1
BAND: Final = 2
DARE: Final = 3
ROW_BAND: Final = 4

MAGNITUDE = np.uint32(0x7FFFFFFF)
_DIGIT: Final = 20  # magnitudes are binned by bits 30..20: 2048 bins, which stay in L1
_BINS: Final = 2048


@inlined
def keep_top(x: NDArray[np.float32], n: int, first: int, threshold: np.uint32, until: int) -> None:
    """Zero what is not among the k largest magnitudes, given as (threshold, until)."""
    bits = x.view(np.uint32)
    # Ties are decided by position, so a block is all before, all after or astride `until`.
    edge = min(max(until - first, 0), n)
    for i in range(edge):
        m = bits[i] & MAGNITUDE
        bits[i] = bits[i] if m >= threshold else np.uint32(0)
    for i in range(edge, n):
        m = bits[i] & MAGNITUDE
        bits[i] = bits[i] if m > threshold else np.uint32(0)


@inlined
def drop_top(x: NDArray[np.float32], n: int, first: int, threshold: np.uint32, until: int) -> None:
    """Zero the k largest magnitudes, given as (threshold, until)."""
    bits = x.view(np.uint32)
    edge = min(max(until - first, 0), n)
    for i in range(edge):
        m = bits[i] & MAGNITUDE
        bits[i] = np.uint32(0) if m >= threshold else bits[i]
    for i in range(edge, n):
        m = bits[i] & MAGNITUDE
        bits[i] = np.uint32(0) if m > threshold else bits[i]


@inlined
def mixed(a: np.uint32) -> np.uint32:
    """Return the 32-bit finaliser of the counter generator."""
    a = np.uint32(a ^ (a >> np.uint32(16)))
    a = np.uint32(a * np.uint32(0x7FEB352D))
    a = np.uint32(a ^ (a >> np.uint32(15)))
    a = np.uint32(a * np.uint32(0x846CA68B))
    return np.uint32(a ^ (a >> np.uint32(16)))


@inlined
def drop_random(
    x: NDArray[np.float32],
    n: int,
    first: int,
    key_low: int,
    key_high: int,
    keep: int,
    factor: np.float32,
) -> None:
    """Zero entries whose 32-bit draw is not below `keep`, and multiply the rest by `factor`."""
    if keep > 0xFFFFFFFF:
        for i in range(n):
            x[i] = x[i] * factor
        return
    limit = np.uint32(keep)
    done = 0
    while done < n:
        # The high word of the flat index is constant up to the next multiple of 2**32.
        high = (first + done) >> 32
        stop = min(n, ((high + 1) << 32) - first)
        counter = np.uint32((first + done + key_low) & 0xFFFFFFFF)
        salt = np.uint32((key_high ^ (high * 0x9E3779B9)) & 0xFFFFFFFF)
        part = x[done:stop]
        # One loop from 0, all in registers: split or offset ones were measured 3 times slower.
        for i in range(stop - done):
            draw = mixed(np.uint32(mixed(np.uint32(counter + np.uint32(i))) ^ salt))
            part[i] = part[i] * factor if draw < limit else np.float32(0.0)
        done = stop


@inlined
def _cut_of_row(
    bits: NDArray[np.uint32], n: int, k: int, bins: NDArray[np.int64], found: NDArray[np.uint32]
) -> tuple[np.uint32, int]:
    """Return (threshold, until) of the k largest magnitudes of one row, 1 <= k <= n.

    `bins` counts the row's magnitudes by their upper bits; `found` is scratch for n entries.
    """
    above = 0
    digit = _BINS - 1
    while above + bins[digit] < k:
        above += int(bins[digit])
        digit -= 1
    rank = k - above
    count = 0
    wanted = np.uint32(digit)
    for i in range(n):
        m = bits[i] & MAGNITUDE
        found[count] = m
        count += 1 if (m >> np.uint32(_DIGIT)) == wanted else 0
    threshold = _kth_largest(found, count, rank)
    ties = rank
    for i in range(count):
        ties -= 1 if found[i] > threshold else 0
    # `found` has been permuted: the position of the last tie is looked up in the row itself.
    for i in range(n):
        if (bits[i] & MAGNITUDE) == threshold:
            ties -= 1
            if ties == 0:
                return threshold, i + 1
    return threshold, n


@inlined
def _kth_largest(values: NDArray[np.uint32], n: int, k: int) -> np.uint32:
    """Return the k-th largest of `values[:n]` by quickselect; the values are permuted."""
    low, high = 0, n - 1
    target = k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            break
    return np.uint32(values[target])


@inlined
def band_rows(
    x: NDArray[np.float32],
    n: int,
    width: int,
    top: int,
    keep: int,
    bins: NDArray[np.int64],
    found: NDArray[np.uint32],
) -> None:
    """In each row of `width`, zero the `top` largest magnitudes and keep the next `keep`."""
    for row in range(0, n, width):
        part = x[row : row + width]
        bits = part.view(np.uint32)
        bins[:] = 0
        for i in range(width):
            bins[(bits[i] & MAGNITUDE) >> np.uint32(_DIGIT)] += 1
        low, low_until = np.uint32(0), width
        if top + keep < width:
            low, low_until = _cut_of_row(bits, width, top + keep, bins, found)
        if top > 0:
            high, high_until = _cut_of_row(bits, width, top, bins, found)
            drop_top(part, width, 0, high, high_until)
        keep_top(part, width, 0, low, low_until)
