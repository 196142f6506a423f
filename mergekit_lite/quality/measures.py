"""What is said of a model by numbers: each a function of how often every unit is counted.

A unit is a window of a text, a question, a text with a label, or a pair. Drawing units with
repetition, the same ones for both models of a comparison, gives its paired bootstrap interval.
Ranks of a correlation stay those of all units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.errors import RecipeError
from mergekit_lite.quality.scores import (
    ChoiceScore,
    Likeness,
    PairScore,
    Score,
    TaskScore,
    TextScore,
    correlation,
)
from mergekit_lite.recipe.schema import SCORES

Counts = NDArray[np.float64]
DRAWS = 2000
SEED = 20260101
"""Of all intervals, so that the same scores always give the same ones."""


_NAMES = {
    TextScore: "bits_per_byte",
    ChoiceScore: "accuracy",
    PairScore: "correlation",
    TaskScore: "mean",
}


@dataclass(frozen=True)
class Measured:
    """A number and how sure it is.

    Attributes:
        value: over all units.
        low: lower end of its bootstrap interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def measured(
    kind: str, score: Score, other: Score | Likeness | None = None, *, confidence: float = 0.95
) -> Measured:
    """Return one number of a model, with the interval that drawing units again gives.

    Args:
        kind: a name of `SCORES`.
        score: of the model.
        other: what it is compared with: scores, or for `kl` and `agreement` the likeness.
        confidence: part of the draws that the interval holds, 0 to 1; 0 gives the value alone.

    Raises:
        RecipeError: the data does not have this number.
    """
    function, units = _function(kind, score, other)
    value = float(function(np.ones(units)))
    if confidence <= 0 or units < 2:
        return Measured(value, value, value)
    # Raw bits, as numpy promises that those of a seed stay the same.
    units_drawn = np.random.Philox(SEED).random_raw(DRAWS * units).reshape(DRAWS, units) % units
    counts = np.stack([np.bincount(draw, minlength=units) for draw in units_drawn.astype(np.intp)])
    drawn = np.sort(function(counts.astype(np.float64)))
    out = round((1 - confidence) / 2 * (DRAWS - 1))
    return Measured(value, float(drawn[out]), float(drawn[DRAWS - 1 - out]))


def _function(
    kind: str, score: Score, other: Score | Likeness | None
) -> tuple[Callable[[Counts], Any], int]:
    """Return the number as a function of counts (..., units), and the units that there are."""
    if isinstance(score, TextScore) and kind in ("bits_per_byte", "perplexity"):
        below = score.nbytes if kind == "bits_per_byte" else score.tokens
        mean = _ratio(score.nats, below)
        if kind == "perplexity":
            return lambda counts: np.exp(np.minimum(mean(counts), 700.0)), len(below)
        return lambda counts: mean(counts) / np.log(2), len(below)
    if isinstance(score, ChoiceScore) and kind == "accuracy":
        return _ratio(score.right), len(score.right)
    if isinstance(score, TaskScore) and kind == "mean":
        return _ratio(score.values), len(score.values)
    if isinstance(score, TaskScore) and isinstance(other, TaskScore) and kind == "flips":
        pairs = zip(score.values, other.values, strict=True)
        return _ratio([now < before for now, before in pairs]), len(score.values)
    if isinstance(score, PairScore) and kind == "correlation":
        ranks = score.ranks
        return lambda counts: correlation(*ranks, counts), len(score.cosines)
    if isinstance(other, Likeness) and kind == "similarity" and other.similarities:
        return _ratio(other.similarities), len(other.similarities)
    if isinstance(other, Likeness) and kind in ("kl", "agreement") and other.tokens:
        above = other.kl if kind == "kl" else other.agreed
        return _ratio(above, other.tokens), len(above)
    if kind == "recovery" and other is not None and type(other) is type(score):
        return _recovery(score, other)
    if kind == "flips" and isinstance(score, ChoiceScore) and isinstance(other, ChoiceScore):
        pairs = zip(score.right, other.right, strict=True)
        return _ratio([before and not now for now, before in pairs]), len(score.right)
    kinds = " and ".join(SCORES[kind].of)
    raise RecipeError(f"`{kind}` is a number of {kinds}", hint="name data of that kind")


def _recovery(score: Score, other: Score | Likeness) -> tuple[Callable[[Counts], Any], int]:
    name = _NAMES[type(score)]
    own, units = _function(name, score, None)
    theirs, _ = _function(name, other, None) if not isinstance(other, Likeness) else (own, 0)
    above, below = (theirs, own) if name == "bits_per_byte" else (own, theirs)

    def recovery(counts: Counts) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = above(counts) / below(counts)
        # A draw in which neither has anything right says nothing against either.
        return np.where(np.isnan(found) & (above(counts) == 0), 1.0, found)

    return recovery, units


def _ratio(above: Any, below: Any = None) -> Callable[[Counts], Any]:
    """Return sum(counts * above) / sum(counts * below); below is 1 for each unit by default."""
    top = np.asarray(above, np.float64)
    bottom = np.ones(len(top)) if below is None else np.asarray(below, np.float64)

    def ratio(counts: Counts) -> Any:
        # Units one after the other, so that no library decides the order of the sum.
        return (counts * top).sum(-1) / np.maximum((counts * bottom).sum(-1), 1e-300)

    return ratio
