"""The drop by rank in a row (`magprune`): all ranks of each row, then one draw an entry."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined
from mergekit_lite.kernels.marks import first_mark
from mergekit_lite.kernels.row_keys import (
    count_keys,
    counts_in,
    keys_in,
    pairs_in,
    write_keys,
)
from mergekit_lite.kernels.steps import MAGNITUDE, mixed

_DIGITS: Final = 2048
_FEW: Final = 64
_MANY: Final = 4096
"""Entries of keys that are not exact: so many are sorted key by key, more by all their bits."""

_ALL = np.float64(2.0**32)
_ONE = np.uint32(1)
_LOW = np.uint64(0xFFFFFFFF)


@inlined
def _pair(bits: NDArray[np.uint32], i: int) -> np.uint64:
    """Return a number that orders entries by magnitude, then by position."""
    return np.uint64(np.uint64(bits[i] & MAGNITUDE) << np.uint64(32)) | np.uint64(i)


@inlined
def _mark_left(keys: NDArray[np.uint32], marks: NDArray[np.uint8]) -> None:
    """Mark the entries of keys that are not exact; `marks` holds whole words."""
    n = len(keys)
    for i in range(n):
        key = keys[i]
        marks[i] = np.uint8((np.uint32(key & _ONE) == 0) & (key != 0))
    for i in range(n, len(marks)):
        marks[i] = np.uint8(0)


@inlined
def _to_starts(bins: NDArray[np.uint32], number: int, crowds: NDArray[np.uint32]) -> int:
    """Turn counts of keys into the rank of each key's first entry, in both halves.

    The first rank and the number of entries of keys that are not exact but have several entries
    are listed in `crowds`; how many numbers that are is returned.
    """
    total, listed = np.uint32(0), np.uint32(0)
    for k in range(number):
        key = np.uint32(k)
        at = np.uint32(key << _ONE)
        first, second = bins[at], bins[at | _ONE]
        held = np.uint32(first + second)
        bins[at], bins[at | _ONE] = total, np.uint32(total + first)
        crowds[listed], crowds[listed + _ONE] = total, held
        is_crowd = (np.uint32(key & _ONE) == 0) & (key != 0) & (held > _ONE)
        listed = np.uint32(listed + np.uint32(np.uint32(is_crowd) << _ONE))
        total = np.uint32(total + held)
    return int(listed)


@inlined
def _rank(keys: NDArray[np.uint32], half: np.uint32, i: int, bins: NDArray[np.uint32]) -> None:
    """Replace the key of an entry of one half by its rank among all, ties by position."""
    at = np.uint32(np.uint32(keys[i] << _ONE) | half)
    keys[i] = bins[at]
    bins[at] += _ONE


@inlined
def _settle(
    bits: NDArray[np.uint32],
    ranks: NDArray[np.uint32],
    marks: NDArray[np.uint64],
    crowds: NDArray[np.uint32],
    pairs: NDArray[np.uint64],
) -> None:
    """Order the entries of keys that are not exact, which so far have ranks by position."""
    for word in range(len(marks)):
        left = marks[word]
        while left != 0:
            mark, byte = first_mark(left)
            i = 8 * word + byte
            pairs[ranks[i]] = _pair(bits, i)
            left = np.uint64(left ^ mark)
    for crowd in range(0, len(crowds), 2):
        start, held = np.int64(crowds[crowd]), np.int64(crowds[crowd + 1])
        part = pairs[start : start + held]
        for a in range(1, held):
            pair, b = part[a], a
            while b > 0 and part[b - 1] > pair:
                part[b] = part[b - 1]
                b -= 1
            part[b] = pair
        for a in range(held):
            ranks[np.uint32(part[a] & _LOW)] = np.uint32(start + a)


@inlined
def _radix(
    bits: NDArray[np.uint32],
    ranks: NDArray[np.uint32],
    bins: NDArray[np.uint32],
    one: NDArray[np.uint64],
    other: NDArray[np.uint64],
) -> None:
    """Write all ranks by a radix sort of three digits: where few magnitudes are the same."""
    n, mask = len(ranks), np.uint32(_DIGITS - 1)
    second, third = np.uint32(_DIGITS), np.uint32(2 * _DIGITS)
    bins[: 3 * _DIGITS] = np.uint32(0)
    for i in range(n):
        m = np.uint32(bits[i] & MAGNITUDE)
        bins[m & mask] += _ONE
        bins[second + ((m >> np.uint32(11)) & mask)] += _ONE
        bins[third + (m >> np.uint32(22))] += _ONE
    for digit in range(0, 3 * _DIGITS, _DIGITS):
        start = np.uint32(0)
        for k in range(digit, digit + _DIGITS):
            held = bins[k]
            bins[k] = start
            start = np.uint32(start + held)
    for i in range(n):
        at = np.uint32(bits[i] & mask)
        one[bins[at]] = _pair(bits, i)
        bins[at] += _ONE
    for i in range(n):
        pair = one[i]
        at = np.uint32(second + (np.uint32(pair >> np.uint64(43)) & mask))
        other[bins[at]] = pair
        bins[at] += _ONE
    for i in range(n):
        pair = other[i]
        at = np.uint32(third + np.uint32(pair >> np.uint64(54)))
        ranks[np.uint32(pair & _LOW)] = bins[at]
        bins[at] += _ONE


@inlined
def rank_row(bits: NDArray[np.uint32], width: int, scratch: NDArray[np.int64]) -> None:
    """Write to `keys_in(scratch)` the rank of every entry from the smallest, ties by position."""
    bins, keys = counts_in(scratch), keys_in(scratch, width)
    pairs = pairs_in(scratch, width)
    one, other = pairs[: width + 2], pairs[width + 2 :]
    number, rest = write_keys(bits, keys)
    if rest > max(_FEW, min(width >> 3, _MANY)):
        _radix(bits, keys, bins, one, other)
        return
    words = (width + 7) >> 3
    marks, crowds = other[:words], other[words:].view(np.uint32)
    _mark_left(keys, marks.view(np.uint8))
    count_keys(keys, number, bins)
    crowded = _to_starts(bins, number, crowds)
    half = width >> 1
    first, second = keys[:half], keys[half:]
    for i in range(half):
        _rank(first, np.uint32(0), i, bins)
        _rank(second, _ONE, i, bins)
    if width & 1:
        _rank(keys, _ONE, width - 1, bins)
    _settle(bits, keys, marks, crowds[:crowded], one)


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
    factor: np.float32,
    scratch: NDArray[np.int64],
) -> None:
    """Keep the entry of rank r in each row with the chance least + spread * r / (width - 1).

    What is kept is divided by its chance if `divided`, else multiplied by `factor`; `scratch` is
    memory of `row_scratch`.
    """
    ranks = keys_in(scratch, width)
    steps = np.float64(max(width - 1, 1))
    for row in range(0, n, width):
        part = x[row : row + width]
        rank_row(part.view(np.uint32), width, scratch)
        done = 0
        while done < width:
            # The high word of the flat index is constant up to the next multiple of 2**32.
            flat = first + row + done
            high = flat >> 32
            stop = min(width, done + ((high + 1) << 32) - flat)
            counter = np.uint32((flat + key_low) & 0xFFFFFFFF)
            salt = np.uint32((key_high ^ (high * 0x9E3779B9)) & 0xFFFFFFFF)
            some, rank = part[done:stop], ranks[done:stop]
            for i in range(stop - done):
                chance = np.float32(least + spread * np.float64(rank[i]) / steps)
                draw = mixed(np.uint32(mixed(np.uint32(counter + np.uint32(i))) ^ salt))
                kept = np.float64(draw) < np.float64(chance) * _ALL
                scaled = np.float32(some[i] / chance) if divided else some[i] * factor
                some[i] = scaled if kept else np.float32(0.0)
            done = stop
