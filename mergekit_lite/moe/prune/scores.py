"""Scores of experts that are reductions of what one measurement has summed up.

With T tokens, g the weight that the router gives an expert (as the model uses it), o what the
expert says of a token, and sums over the n tokens that chose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mergekit_lite.moe.fewer.statistics import Numbers

Found = Mapping[str, Numbers]


class Score(NamedTuple):
    """A way to tell experts apart.

    Attributes:
        what: its formula, in words.
        needs: the statistics that it reads.
        of: statistics of a layer -> a score for each expert; the highest stay.
    """

    what: str
    needs: tuple[str, ...]
    of: Callable[[Found], Numbers]


def tokens(found: Found) -> Numbers:
    """Return how many tokens chose each expert, in all domains together."""
    return np.asarray(found["count"].sum(0))


def mean(total: Numbers, found: Found) -> Numbers:
    """Return a sum over an expert's tokens as their mean, 0 for an expert that none chose."""
    count = tokens(found)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), 0.0))


SCORES: Mapping[str, Score] = {
    "frequency": Score("number of tokens that chose it", ("count",), tokens),
    "gate": Score("sum of its weights g", ("count", "weight"), lambda found: found["weight"]),
    "ean": Score("sum of |o| over its tokens", ("count", "norm"), lambda found: found["norm"]),
    "man": Score(
        "mean of |o| over its tokens",
        ("count", "norm"),
        lambda found: mean(found["norm"], found),
    ),
    "msan": Score(
        "mean of |o|^2 over its tokens",
        ("count", "norm_square"),
        lambda found: mean(found["norm_square"], found),
    ),
    "max_activation": Score(
        "largest entry of any o", ("count", "peak"), lambda found: found["peak"]
    ),
    "reap": Score(
        "mean of g |o| over its tokens",
        ("count", "weighted_norm"),
        lambda found: mean(found["weighted_norm"], found),
    ),
    "easy_ep": Score(
        "sum of g |o| (1 - cos) over its tokens, cos between the stream before and after the"
        " experts",
        ("count", "turned_norm"),
        lambda found: found["turned_norm"],
    ),
}
"""By the name that a recipe writes."""
