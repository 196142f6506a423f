"""Counts the magnitudes of a row: small keys in their order, and how many entries have each.

A key is the upper bits of a magnitude and one more, which says whether lower bits are left. Models
that are stored in 16 bits differ by few distinct magnitudes, nearly all of which end where the
upper bits do: such a key is *exact*, its entries are all equal, and to count is to rank. Entries
with lower bits are *left*; they come after the exact ones with the same upper bits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined
from mergekit_lite.kernels.steps import MAGNITUDE

_MOST: Final = 1024
"""Upper bits that are told apart: with two counts for each key of theirs they stay in L1."""
_LEAST: Final = 16
BINS: Final = 6144
"""Counts that there is memory for: three digits of 11 bits, or two halves of all keys."""

_HEAD: Final = 3

_ONE = np.uint32(1)
_ZERO = np.uint32(0)


def row_scratch(width: int) -> int:
    """Return the entries of the memory that row steps want; it begins as zeros.

    What a table is for, counts, keys, a table by rank, and two rows of pairs.
    """
    return _HEAD + BINS // 2 + 2 * ((width + 1) // 2) + 2 * width + width // 8 + 5


@inlined
def counts_in(scratch: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the counts in memory of `row_scratch`."""
    return scratch[_HEAD : _HEAD + BINS // 2].view(np.uint32)


@inlined
def keys_in(scratch: NDArray[np.int64], width: int) -> NDArray[np.uint32]:
    """Return the keys in memory of `row_scratch`."""
    return scratch[_HEAD + BINS // 2 :].view(np.uint32)[:width]


@inlined
def table_in(scratch: NDArray[np.int64], width: int) -> NDArray[np.uint32]:
    """Return the table by rank in memory of `row_scratch`; `scratch[:3]` says what it is for."""
    return scratch[_HEAD + BINS // 2 + (width + 1) // 2 :].view(np.uint32)[:width]


@inlined
def pairs_in(scratch: NDArray[np.int64], width: int) -> NDArray[np.uint64]:
    """Return room for pairs: a row of them and a row of other things, in `row_scratch`."""
    return scratch[_HEAD + BINS // 2 + 2 * ((width + 1) // 2) :].view(np.uint64)


@inlined
def is_exact(key: int) -> bool:
    """Return whether all entries of a key are equal: zeros are, and those without lower bits."""
    return key == 0 or key & 1 == 1


@inlined
def write_keys(
    bits: NDArray[np.uint32], keys: NDArray[np.uint32]
) -> tuple[int, int, np.uint32, np.uint32]:
    """Write the key of every entry; return how many keys there may be, and how many are left.

    Keys are 0 for zeros; 2 k + 1 and 2 k + 2 for a magnitude m without and with lower bits, where
    k = (m - start) >> cut; start and cut are returned as well.
    """
    n = len(keys)
    high, low = _ZERO, np.uint32(0xFFFFFFFF)
    for i in range(n):
        m = np.uint32(bits[i] & MAGNITUDE)
        high = max(high, m)
        low = min(low, np.uint32(m - _ONE))  # zeros are not looked for
    low = np.uint32(low + _ONE)
    most = min(_MOST, max(_LEAST, n >> 2))
    shift = 0
    while int(high >> np.uint32(shift)) - int(low >> np.uint32(shift)) >= most:
        shift += 1
    cut = np.uint32(shift)
    start = np.uint32((low >> cut) << cut)
    lower = np.uint32((_ONE << cut) - _ONE)
    left = _ZERO
    for i in range(n):
        m = np.uint32(bits[i] & MAGNITUDE)
        above = np.uint32(m - start)
        rest = np.uint32((above & lower) != _ZERO)
        rest = rest if m != _ZERO else _ZERO
        left = np.uint32(left + rest)
        key = np.uint32(np.uint32(np.uint32(above >> cut) << _ONE) + rest + _ONE)
        keys[i] = key if m != _ZERO else _ZERO
    number = 1 if high == _ZERO else (int((high - start) >> cut) << 1) + 3
    return number, int(left), start, cut


@inlined
def count_keys(keys: NDArray[np.uint32], number: int, bins: NDArray[np.uint32]) -> None:
    """Count every key in both halves of the row: at 2 key and 2 key + 1.

    In halves, so that an entry need not wait for the count of the one before it, which often has
    the same key.
    """
    bins[: 2 * number] = _ZERO
    n = len(keys)
    half = n >> 1
    first, second = keys[:half], keys[half:]
    for i in range(half):
        bins[np.uint32(first[i] << _ONE)] += _ONE
        bins[np.uint32((second[i] << _ONE) | _ONE)] += _ONE
    if n & 1:
        bins[np.uint32((keys[n - 1] << _ONE) | _ONE)] += _ONE
