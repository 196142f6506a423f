"""What ways of grouping look at: what was measured of a layer's experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_lite.moe.fewer.statistics import Numbers


@dataclass(frozen=True)
class Seen:
    """Some experts of a layer, by their place among these.

    Attributes:
        frequency: how many tokens chose each.
        saliency: REAP's score of each.
        measured: what else was measured, each with a row for each expert.
        largest: most experts of a group, where a method bounds it.
    """

    frequency: Numbers
    saliency: Numbers
    measured: Mapping[str, Numbers]
    largest: int

    @property
    def experts(self) -> int:
        return len(self.frequency)

    def among(self, run: Sequence[int]) -> Seen:
        """Return the same of some experts alone."""
        at = np.asarray(run)
        square = (self.experts, self.experts)
        cut = {
            name: value[np.ix_(at, at)] if value.shape == square else value[at]
            for name, value in self.measured.items()
        }
        return Seen(self.frequency[at], self.saliency[at], cut, self.largest)


def cosines(rows: Numbers) -> Numbers:
    """Return the cosine of each row with each other; that of a row of zeros is 0."""
    return cosines_of_products(rows @ rows.T)


def cosines_of_products(products: Numbers) -> Numbers:
    """Return cosines from the inner products of all pairs."""
    norms = np.sqrt(np.maximum(np.diagonal(products), 0))
    scale = np.where(norms > 0, 1 / np.maximum(norms, 1e-300), 0.0)
    return np.asarray(products * scale[:, None] * scale[None, :])


def ranked(scores: Numbers) -> list[int]:
    """Return places in descending order of a score; of equal ones the first comes first."""
    return [int(at) for at in np.argsort(-scores, kind="stable")]
