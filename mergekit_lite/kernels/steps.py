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
ROW_DROP: Final = 5

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


def row_scratch(width: int) -> int:
    """Return the entries of the memory that `band_rows` wants: counts, and a row of keys."""
    return _BINS + width


@inlined
def _bin_of(bins: NDArray[np.int64], k: int) -> tuple[int, int]:
    """Return the bin that holds the k-th largest magnitude, and its rank within the bin."""
    digit = _BINS - 1
    while bins[digit] < k:
        k -= int(bins[digit])
        digit -= 1
    return digit, k


@inlined
def _kth_largest(values: NDArray[np.uint64], low: int, high: int, k: int) -> np.uint64:
    """Return the k-th largest of `values[low:high + 1]` by quickselect, which permutes them."""
    target = low + k - 1
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
    return np.uint64(values[target])


@inlined
def _magnitude(key: np.uint64) -> np.uint32:
    return np.uint32(key >> np.uint64(32))


@inlined
def _after(key: np.uint64) -> int:
    """Return the position after that of a key's entry."""
    return int(np.uint32(~np.uint32(key & np.uint64(0xFFFFFFFF)))) + 1


@inlined
def band_rows(
    x: NDArray[np.float32],
    n: int,
    width: int,
    top: int,
    keep: int,
    scratch: NDArray[np.int64],
) -> None:
    """In each row of `width`, zero the `top` largest magnitudes and keep the next `keep`.

    `scratch` is memory of `row_scratch(width)` entries.
    """
    bins = scratch[:_BINS]
    found = scratch[_BINS:].view(np.uint64)
    for row in range(0, n, width):
        part = x[row : row + width]
        bits = part.view(np.uint32)
        bins[:] = 0
        for i in range(width):
            bins[(bits[i] & MAGNITUDE) >> np.uint32(_DIGIT)] += 1
        low_digit, low_rank = _bin_of(bins, top + keep)
        high_digit, high_rank = _bin_of(bins, max(top, 1))
        is_one_bin = high_digit == low_digit
        aside = _BINS if is_one_bin else high_digit
        # A key orders entries by magnitude, then by position, so that no two are the same. The
        # lower bin's grow from the left end, the upper one's from the right.
        low, high = 0, width
        for i in range(width):
            m = bits[i] & MAGNITUDE
            digit = m >> np.uint32(_DIGIT)
            key = (np.uint64(m) << np.uint64(32)) | np.uint64(~np.uint32(i))
            found[low] = key
            low += 1 if digit == np.uint32(low_digit) else 0
            found[high - 1] = key
            high -= 1 if digit == np.uint32(aside) else 0
        last = _kth_largest(found, 0, low - 1, low_rank)
        if top > 0:
            start, end = (0, low) if is_one_bin else (high, width)
            first = _kth_largest(found, start, end - 1, high_rank)
            drop_top(part, width, 0, _magnitude(first), _after(first))
        keep_top(part, width, 0, _magnitude(last), _after(last))
