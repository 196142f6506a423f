"""The band of magnitudes in a row (`breadcrumbs`): two cuts for each row, from counts of keys."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined
from mergekit_lite.kernels.marks import first_mark
from mergekit_lite.kernels.row_keys import (
    count_keys,
    counts_in,
    is_exact,
    keys_in,
    pairs_in,
    write_keys,
)
from mergekit_lite.kernels.steps import MAGNITUDE, drop_top, keep_top

_COUNTED: Final = 1024
"""Entries that are counted together before one of them is looked for."""


@inlined
def _key_of(bins: NDArray[np.uint32], number: int, k: int) -> tuple[int, int]:
    """Return the key of the k-th largest magnitude, and its rank within the key."""
    key = number - 1
    while True:
        held = int(bins[2 * key]) + int(bins[2 * key + 1])
        if k <= held or key == 0:
            return key, k
        k -= held
        key -= 1


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
def _nth_same(keys: NDArray[np.uint32], key: np.uint32, nth: int) -> int:
    """Return where the nth entry with this key is; there must be one."""
    left = np.uint32(nth)
    begin = 0
    while True:
        part = keys[begin : begin + _COUNTED]
        same = np.uint32(0)
        for i in range(len(part)):
            same = np.uint32(same + np.uint32(part[i] == key))
        if same >= left or begin + _COUNTED >= len(keys):
            break
        left = np.uint32(left - same)
        begin += _COUNTED
    at = begin
    for i in range(begin, len(keys)):
        if keys[i] == key:
            at = i
            left = np.uint32(left - np.uint32(1))
            if left == 0:
                break
    return at


@inlined
def _mark_same(keys: NDArray[np.uint32], key: np.uint32, marks: NDArray[np.uint8]) -> int:
    """Mark the entries with a key; return how many words of marks that takes."""
    n = len(keys)
    for i in range(n):
        marks[i] = np.uint8(keys[i] == key)
    for i in range(n, (n + 7) // 8 * 8):
        marks[i] = np.uint8(0)
    return (n + 7) // 8


@inlined
def _cut_at(
    bits: NDArray[np.uint32],
    keys: NDArray[np.uint32],
    bins: NDArray[np.uint32],
    number: int,
    k: int,
    found: NDArray[np.uint64],
    marks: NDArray[np.uint64],
) -> tuple[np.uint32, int]:
    """Return where the k largest magnitudes of a row end, as (threshold, until)."""
    key, left = _key_of(bins, number, k)
    wanted = np.uint32(key)
    if is_exact(key):
        at = _nth_same(keys, wanted, left)
        return np.uint32(bits[at] & MAGNITUDE), at + 1
    held = 0
    for word in range(_mark_same(keys, wanted, marks.view(np.uint8))):
        left_here = marks[word]
        while left_here != 0:
            mark, byte = first_mark(left_here)
            i = 8 * word + byte
            # Ordered by magnitude, then by position, so that no two are the same.
            above = np.uint64(np.uint64(bits[i] & MAGNITUDE) << np.uint64(32))
            found[held] = above | np.uint64(~np.uint32(i))
            held += 1
            left_here = np.uint64(left_here ^ mark)
    chosen = _kth_largest(found, 0, held - 1, left)
    until = int(np.uint32(~np.uint32(chosen & np.uint64(0xFFFFFFFF)))) + 1
    return np.uint32(chosen >> np.uint64(32)), until


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
    bins, keys = counts_in(scratch), keys_in(scratch, width)
    pairs = pairs_in(scratch, width)
    found, marks = pairs[:width], pairs[width:]
    for row in range(0, n, width):
        part = x[row : row + width]
        bits = part.view(np.uint32)
        number, _, _, _ = write_keys(bits, keys)
        count_keys(keys, number, bins)
        last, after = _cut_at(bits, keys, bins, number, top + keep, found, marks)
        if top > 0:
            first, before = _cut_at(bits, keys, bins, number, top, found, marks)
            drop_top(part, width, 0, first, before)
        keep_top(part, width, 0, last, after)
