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
    table_in,
    write_keys,
)
from mergekit_lite.kernels.steps import MAGNITUDE, mixed

_DIGITS: Final = 2048
_FEW: Final = 64
_MANY: Final = 4096
"""Entries of keys that are not exact: so many are sorted key by key, more by all their bits."""

_CERTAIN = np.float32(1.0).view(np.uint32)
_LEAST = np.float32(2.0**-32).view(np.uint32)
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
def _to_starts(bins: NDArray[np.uint32], number: int, spans: NDArray[np.uint32]) -> int:
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
        spans[listed], spans[listed + _ONE] = total, held
        is_span = (np.uint32(key & _ONE) == 0) & (key != 0) & (held != 0)
        listed = np.uint32(listed + np.uint32(np.uint32(is_span) << _ONE))
        total = np.uint32(total + held)
    return int(listed)


@inlined
def _place(
    keys: NDArray[np.uint32],
    half: np.uint32,
    i: int,
    bins: NDArray[np.uint32],
    table: NDArray[np.uint32],
) -> None:
    """Replace the key of an entry of one half by what the table has for its rank by position."""
    at = np.uint32(np.uint32(keys[i] << _ONE) | half)
    keys[i] = table[bins[at]]
    bins[at] += _ONE


@inlined
def _settle(
    bits: NDArray[np.uint32],
    start: np.uint32,
    cut: np.uint32,
    marks: NDArray[np.uint64],
    bins: NDArray[np.uint32],
    spans: NDArray[np.uint32],
    pairs: NDArray[np.uint64],
    table: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> None:
    """Order the entries of keys that are not exact, which so far are placed by position."""
    half = len(out) >> 1
    for word in range(len(marks)):
        left = marks[word]
        while left != 0:
            mark, byte = first_mark(left)
            i = 8 * word + byte
            k = np.uint32(np.uint32(np.uint32(bits[i] & MAGNITUDE) - start) >> cut)
            at = np.uint32(np.uint32(np.uint32(k + _ONE) << np.uint32(2)) | np.uint32(i >= half))
            # Counts have gone past the key's entries: in which order they come back is the same.
            bins[at] -= _ONE
            pairs[bins[at]] = _pair(bits, i)
            left = np.uint64(left ^ mark)
    for span in range(0, len(spans), 2):
        first, held = np.int64(spans[span]), np.int64(spans[span + 1])
        part = pairs[first : first + held]
        for a in range(1, held):
            pair, b = part[a], a
            while b > 0 and part[b - 1] > pair:
                part[b] = part[b - 1]
                b -= 1
            part[b] = pair
        for a in range(held):
            out[np.uint32(part[a] & _LOW)] = table[first + a]


@inlined
def _radix(
    bits: NDArray[np.uint32],
    bins: NDArray[np.uint32],
    one: NDArray[np.uint64],
    other: NDArray[np.uint64],
    table: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> None:
    """Place all entries by a radix sort of three digits: where few magnitudes are the same."""
    n, mask = len(out), np.uint32(_DIGITS - 1)
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
        out[np.uint32(pair & _LOW)] = table[bins[at]]
        bins[at] += _ONE


@inlined
def place_by_rank(
    bits: NDArray[np.uint32], table: NDArray[np.uint32], scratch: NDArray[np.int64]
) -> None:
    """Write to `keys_in(scratch)`, for an entry of rank r in its row, `table[r]`.

    Ranks are by magnitude, from the smallest; ties are ranked by position.
    """
    width = len(bits)
    bins, keys = counts_in(scratch), keys_in(scratch, width)
    pairs = pairs_in(scratch, width)
    one, other = pairs[:width], pairs[width:]
    number, rest, start, cut = write_keys(bits, keys)
    if rest > max(_FEW, min(width >> 3, _MANY)):
        _radix(bits, bins, one, other, table, keys)
        return
    words = (width + 7) >> 3
    marks, spans = other[:words], other[words:].view(np.uint32)
    _mark_left(keys, marks.view(np.uint8))
    count_keys(keys, number, bins)
    listed = _to_starts(bins, number, spans)
    half = width >> 1
    first, second = keys[:half], keys[half:]
    for i in range(half):
        _place(first, np.uint32(0), i, bins, table)
        _place(second, _ONE, i, bins, table)
    if width & 1:
        _place(keys, _ONE, width - 1, bins, table)
    _settle(bits, start, cut, marks, bins, spans[:listed], one, table, keys)


@inlined
def is_kept(draw: np.uint32, chance: np.float32) -> bool:
    """Return whether draw < chance * 2^32, exactly, for a chance of above 0 to 1.

    In whole numbers, twice as many of which fit a vector as of those that hold the product.
    """
    bits = np.float32(chance).view(np.uint32)
    digits = np.uint32(np.uint32(bits << np.uint32(8)) | np.uint32(0x80000000))
    down = min(np.uint32(np.uint32(126) - (bits >> np.uint32(23))), np.uint32(31))
    limit = np.uint32(digits >> down)
    limit = np.uint32(limit + np.uint32(np.uint32(limit << down) != digits))
    limit = _ONE if bits < _LEAST else limit
    return bool((draw < limit) | (bits >= _CERTAIN))


@inlined
def chances_in(
    scratch: NDArray[np.int64], width: int, least: float, spread: float
) -> NDArray[np.uint32]:
    """Return the chance of each rank of a row, as bits; `scratch` keeps them for the next row."""
    table: NDArray[np.uint32] = table_in(scratch, width)
    low, more = np.float64(least).view(np.int64), np.float64(spread).view(np.int64)
    if scratch[0] != width or scratch[1] != low or scratch[2] != more:
        chances, steps = table.view(np.float32), np.float64(max(width - 1, 1))
        for rank in range(width):
            chances[rank] = np.float32(least + spread * np.float64(rank) / steps)
        scratch[0], scratch[1], scratch[2] = width, low, more
    return table


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
    table = chances_in(scratch, width, least, spread)
    chances = keys_in(scratch, width).view(np.float32)
    for row in range(0, n, width):
        part = x[row : row + width]
        place_by_rank(part.view(np.uint32), table, scratch)
        done = 0
        while done < width:
            # The high word of the flat index is constant up to the next multiple of 2**32.
            flat = first + row + done
            high = flat >> 32
            stop = min(width, done + ((high + 1) << 32) - flat)
            counter = np.uint32((flat + key_low) & 0xFFFFFFFF)
            salt = np.uint32((key_high ^ (high * 0x9E3779B9)) & 0xFFFFFFFF)
            some, odds = part[done:stop], chances[done:stop]
            for i in range(stop - done):
                draw = mixed(np.uint32(mixed(np.uint32(counter + np.uint32(i))) ^ salt))
                scaled = np.float32(some[i] / odds[i]) if divided else some[i] * factor
                some[i] = scaled if is_kept(draw, odds[i]) else np.float32(0.0)
            done = stop
