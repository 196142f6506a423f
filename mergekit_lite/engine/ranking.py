"""The exact k-th largest of entries that are seen in any order, by two counts of their bits."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.ops._statistics import whole_square

HIGH, LOW = -1, -2
"""Keys of what the first count adds up beside: squares of mantissas by upper bits, in two parts."""
UPPER = 1 << 16
"""Bins of the first count: bits 30..15 of a magnitude, bits 31..16 of a signed key."""


class Ranking:
    """Counts the bits of entries twice and then knows the k-th largest, for each k.

    Entries are ordered by whole numbers: the fp32 bits of a magnitude, or of signed values a key
    with the sign turned so that a larger value has a larger key (`keys_of`).

    Args:
        ranks: the wanted k, from 1 on; 0 wants nothing.
        size: entries in all; a larger k counts as this number.
        signed: the entries are signed keys.
        zeros: how many of them are zero and are never shown.
        share: of the sum of squares: in place of `ranks`, of which there must be one, the least k
            of which the k largest magnitudes have it.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        size: int,
        *,
        signed: bool = False,
        zeros: int = 0,
        share: float | None = None,
    ) -> None:
        self.ranks = [min(rank, size) for rank in ranks]
        self.signed = signed
        self.shift = 16 if signed else 15
        self.stage = 0
        self.left = list(self.ranks)
        """Rank among the entries tied with the k-th, once that is known."""
        self.found = [0] * len(self.ranks)
        """Upper bits after the first count, all bits after the second."""
        self.zeros = zeros
        self.zero = UPPER // 2 if signed else 0
        """Upper bits of zero, whose other bits are none."""
        self.bins: dict[int, NDArray[np.int64]] = {0: np.zeros(UPPER, np.int64)}
        self.bins[0][self.zero] = zeros
        self.share = share
        if share is not None:
            self.bins |= {part: np.zeros(UPPER, np.int64) for part in (HIGH, LOW)}
        self._missing = 0
        """Of the sum of squares, what the bin that was found must bring."""
        self._lock = threading.Lock()

    @property
    def lower(self) -> int:
        """Bins of a second count."""
        return 1 << self.shift

    def add(self, bins: dict[int, NDArray[np.int64]]) -> None:
        """Take in counts, from any thread: of all upper bits at 0; then by upper bits."""
        with self._lock:
            for digit, counts in bins.items():
                self.bins[digit] += counts

    def empty(self) -> dict[int, NDArray[np.int64]]:
        """Return bins like those that `add` wants next, with nothing in them."""
        return {digit: np.zeros_like(counts) for digit, counts in self.bins.items()}

    def next(self) -> bool:
        """End a count; return whether another one is needed."""
        if self.share is not None:
            self._find_shared()
        wanted = [slot for slot, rank in enumerate(self.ranks) if rank > 0]
        for slot in wanted:
            if self.stage == 0:
                self.found[slot], self.left[slot] = bin_of(self.bins[0], self.left[slot])
            else:
                bins = self.bins[self.found[slot]]
                rest, self.left[slot] = bin_of(bins, self.left[slot])
                self.found[slot] = (self.found[slot] << self.shift) | rest
        if self.stage == 0:
            digits = {self.found[slot] for slot in wanted}
            self.bins = {digit: np.zeros(self.lower, np.int64) for digit in digits}
            if self.zero in digits:
                self.bins[self.zero][0] = self.zeros
        self.stage += 1
        return bool(wanted) and self.stage < 2

    def _find_shared(self) -> None:
        """Turn the wanted share into a rank, first by the bin that it ends in, then exactly."""
        if self.stage == 0:
            high, low = self.bins.pop(HIGH), self.bins.pop(LOW)
            counts, rank = self.bins[0], 0
            # All numbers of a bin have one exponent; few bins have any.
            sums = {
                digit: (int(high[digit]) << 24) + int(low[digit]) << 2 * max((digit >> 8) - 1, 0)
                for digit in np.flatnonzero(counts).tolist()
            }
            wanted, parts = (self.share or 0.0).as_integer_ratio()
            least = wanted * sum(sums.values())
            for digit in reversed(sums):
                if least <= 0 or least <= sums[digit] * parts:
                    break
                least -= sums[digit] * parts
                rank += int(counts[digit])
            self._missing = least
            self.ranks[0] = self.left[0] = rank + 1 if least > 0 else 0
        elif self.stage == 1 and self.ranks[0]:
            above = self.ranks[0] - 1
            parts = (self.share or 0.0).as_integer_ratio()[1]
            bins, rank = self.bins[self.found[0]], 0
            for lower in reversed(np.flatnonzero(bins).tolist()):
                count = int(bins[lower])
                each = whole_square((self.found[0] << self.shift) | lower) * parts
                needed = -(-self._missing // each)
                if needed <= count:
                    rank += needed
                    break
                self._missing -= each * count
                rank += count
            self.left[0], self.ranks[0] = rank, above + rank

    def threshold(self, slot: int) -> float:
        """Return the k-th largest; infinity where nothing is wanted."""
        if self.ranks[slot] <= 0:
            return float("inf")
        return value_of(self.found[slot], signed=self.signed)


def value_of(key: int, *, signed: bool = False) -> float:
    """Return the fp32 number with these magnitude bits, or with this signed key."""
    bits = key
    if signed:
        bits = key ^ 0x80000000 if key & 0x80000000 else key ^ 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def bin_of(bins: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Return the bin that holds the `rank`-th largest entry, and its rank within that bin."""
    from_top = np.cumsum(bins[::-1])
    place = int(np.searchsorted(from_top, rank))
    return len(bins) - 1 - place, rank - int(from_top[place - 1] if place else 0)
