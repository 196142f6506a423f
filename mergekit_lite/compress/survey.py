"""The k-th largest magnitude of differences, exactly, and their sums: for a tensor or a model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels.survey import (
    BLOCK,
    LOWER,
    UPPER,
    reach_tile,
    refine_tile,
    survey_tile,
)

_UPPERS, _LOWERS = 1 << UPPER, 1 << LOWER
_ABOUT = 16  # upper parts on either side of a guess; each is 0.2 to 0.4 % of the magnitude


@dataclass(frozen=True)
class Found:
    """What a survey has found.

    Attributes:
        entries: of all differences.
        kept: entries that are kept: what was asked for, or all that are not zero.
        threshold: bits of the least magnitude that is kept.
        ties: how many entries of just that magnitude are kept.
        std: sample standard deviation of all entries.
        mean_abs: mean magnitude of the kept ones; NaN unless it was asked for.
        l2: root of the mean square of the kept ones; NaN unless it was asked for.
    """

    entries: int
    kept: int
    threshold: int
    ties: int
    std: float
    mean_abs: float
    l2: float


@dataclass
class Survey:
    """Sweeps over differences: `look` at all, `choose` how many are kept, `refine` if need be.

    Where a sample has told well enough where the threshold will be, smaller magnitudes are not
    counted and the second sweep is spared; where it has misled, all are looked at again.

    Sums are taken tensor by tensor in the order of the entries and added exactly, so that they
    depend on nothing else.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_UPPERS, np.int64))
    entries: int = 0
    _sums: list[NDArray[np.float64]] = field(default_factory=list)
    _kept: int = 0
    _upper: int = 0
    _above: int = 0
    _first: int = 0
    _least: float = 0.0
    _fine: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, _LOWERS), np.int64))
    _lower: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_LOWERS, np.int64))
    _beyond: list[NDArray[np.float64]] = field(default_factory=list)

    def guess(self, sample: Iterable[tuple[float, NDArray[np.float32]]], share: float) -> None:
        """Take down finely what lies about the threshold that a sample gives.

        Args:
            sample: some of the differences, each with how many entries one stands for.
            share: of the entries that will be kept.
        """
        total = np.zeros(_UPPERS, np.float64)
        for weight, delta in sample:
            part = Survey()
            part.look(delta)
            total += weight * part.counts
        beyond = np.cumsum(total[::-1])
        place = min(int(np.searchsorted(beyond, share * beyond[-1])), _UPPERS - 1)
        self._first = max(_UPPERS - 1 - place - _ABOUT, 0)
        self._least = _magnitude(self._first << LOWER)
        self._fine = np.zeros((2 * _ABOUT + 1, _LOWERS), np.int64)

    def look(self, delta: NDArray[np.float32]) -> float:
        """Take a tensor in, or some of one; return the sum of its squares."""
        sums, places = np.zeros(2, np.float64), np.empty(BLOCK, np.uint32)
        work, marks = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.uint8)
        survey_tile(
            self.counts, sums, self._least, self._first, self._fine, places, work, marks, delta
        )
        self._sums.append(sums)
        self.entries += delta.size
        return float(sums[1])

    def counts_enough(self, kept: int) -> bool:
        """Return whether so many entries were counted; if not, look at all again.

        In that case everything is forgotten, the guess too.
        """
        if not self._least or int(self.counts.sum()) >= kept:
            return True
        self.counts[:] = 0
        self.entries, self._sums, self._least = 0, [], 0.0
        self._fine = np.zeros((0, _LOWERS), np.int64)
        return False

    def choose(self, kept: int) -> None:
        """Decide how many entries are kept: 1 to all."""
        self._kept = kept
        beyond = np.cumsum(self.counts[::-1])
        place = int(np.searchsorted(beyond, kept))
        self._upper = _UPPERS - 1 - place
        self._above = int(beyond[place] - self.counts[self._upper])
        row = self._upper - self._first
        if 0 <= row < len(self._fine):
            self._lower = self._fine[row]

    @property
    def knows(self) -> bool:
        """Whether the threshold is known without another sweep; means of what is kept are not."""
        return int(self._lower.sum()) == int(self.counts[self._upper])

    def refine(self, delta: NDArray[np.float32]) -> None:
        """Take the same tensors in once more."""
        if not self._beyond:
            self._lower = np.zeros(_LOWERS, np.int64)
        sums = np.zeros(2, np.float64)
        refine_tile(self._upper, self._lower, sums, delta)
        self._beyond.append(sums)

    def found(self) -> Found:
        """Return what has been found."""
        beyond = np.cumsum(self._lower[::-1])
        place = int(np.searchsorted(beyond, self._kept - self._above))
        lower = _LOWERS - 1 - place
        above = self._above + int(beyond[place] - self._lower[lower])
        threshold = self._upper << LOWER | lower
        # Zeros are never kept, whatever part of the entries is asked for.
        ties = self._kept - above if threshold else 0
        kept = above + ties
        # Those of the threshold's upper part that are greater, by how many there are of each.
        greater = np.arange(lower + 1, _LOWERS)
        bits = (self._upper << LOWER | greater).astype(np.uint32)
        values = bits.view(np.float32).astype(np.float64)
        counts = self._lower[lower + 1 :].astype(np.float64)
        least = _magnitude(threshold)
        absolute = math.fsum([*(s[0] for s in self._beyond), *(values * counts), least * ties])
        squares = math.fsum(
            [*(s[1] for s in self._beyond), *(values * values * counts), least * least * ties]
        )
        return Found(
            entries=self.entries,
            kept=kept,
            threshold=threshold,
            ties=ties,
            std=self._deviation(),
            mean_abs=absolute / max(kept, 1) if self._beyond else math.nan,
            l2=math.sqrt(squares / max(kept, 1)) if self._beyond else math.nan,
        )

    def _deviation(self) -> float:
        if self.entries < 2:
            return 0.0
        total, squares = (math.fsum(s[i] for s in self._sums) for i in (0, 1))
        spread = max(squares - total * total / self.entries, 0.0)
        return math.sqrt(spread / (self.entries - 1))


def _magnitude(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def reach(delta: NDArray[np.float32], threshold: int) -> tuple[int, int]:
    """Return how many entries are greater than a threshold, and how many equal it."""
    counts = np.zeros(2, np.int64)
    reach_tile(delta, threshold, counts)
    return int(counts[0]), int(counts[1])


def largest(delta: NDArray[np.float32], kept: int) -> Found:
    """Return what the `kept` largest of one tensor's entries are."""
    survey = Survey()
    survey.look(delta)
    survey.choose(kept)
    survey.refine(delta)
    return survey.found()


def reached(delta: NDArray[np.float32], threshold: int, ties: int) -> NDArray[np.bool_]:
    """Return which entries are greater than a threshold, or are the first `ties` that equal it."""
    magnitude = delta.view(np.uint32) & np.uint32(0x7FFFFFFF)
    found = magnitude > np.uint32(threshold)
    found[np.flatnonzero(magnitude == np.uint32(threshold))[:ties]] = True
    return found
