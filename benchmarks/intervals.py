"""Scores by window of several domains, their mean, and how sure a difference of two models is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
SEED = 20260101
Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """What a model needs for the windows of one domain.

    Attributes:
        bits: of each window.
        nbytes: of each window.
    """

    bits: tuple[float, ...]
    nbytes: tuple[int, ...]

    def bits_per_byte(self, counts: Counts | None = None) -> Counts:
        """Return the mean over windows, each counted as often as told; (..., windows) -> (...)."""
        times = np.ones(len(self.bits)) if counts is None else counts
        return np.asarray((times * self.bits).sum(-1) / (times * self.nbytes).sum(-1))


Scores = Mapping[str, Windows]
"""Domain -> windows."""


@dataclass(frozen=True)
class Interval:
    """A number and the middle 95 % of what drawing windows again gives."""

    value: float
    low: float
    high: float

    @property
    def is_apart(self) -> bool:
        """Whether 0 is outside."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def mean(scores: Scores) -> float:
    """Return the mean bits per byte over domains."""
    return float(sum(windows.bits_per_byte() for windows in scores.values())) / len(scores)


def difference(scores: Scores, others: Scores) -> Interval:
    """Return by how much the mean of one model is above another's, paired window by window.

    Windows are drawn again within each domain, the same ones for both models, and with the same
    seed always.

    Args:
        scores: of the model.
        others: of what it is compared with, on the same windows.
    """
    total: Counts = np.zeros(DRAWS)
    for place, (domain, windows) in enumerate(scores.items()):
        units = len(windows.bits)
        # Raw bits, as numpy promises that those of a seed stay the same.
        raw = np.random.Philox(SEED + place).random_raw(DRAWS * units).reshape(DRAWS, units)
        counts = np.stack([np.bincount(row, minlength=units) for row in (raw % units).astype(int)])
        drawn = counts.astype(np.float64)
        total = total + windows.bits_per_byte(drawn) - others[domain].bits_per_byte(drawn)
    ordered = np.sort(total / len(scores))
    out = round(0.025 * (DRAWS - 1))
    low, high = float(ordered[out]), float(ordered[DRAWS - 1 - out])
    return Interval(mean(scores) - mean(others), low, high)
