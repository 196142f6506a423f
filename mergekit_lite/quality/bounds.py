"""Bounds on scores, and whether they hold."""

from __future__ import annotations

from mergekit_lite.errors import Problem
from mergekit_lite.quality.measures import Measured, measured
from mergekit_lite.quality.results import Baseline
from mergekit_lite.quality.scores import Evaluation, Likeness, Score
from mergekit_lite.quality.subjects import MERGE
from mergekit_lite.quality.verdicts import Verdict
from mergekit_lite.recipe.schema import BASELINE, SCORES, Bound

ROUNDING = 1e-4
"""What scores may differ by on another processor."""
CONFIDENCE = 0.95
"""Of the intervals of scores that compare two models unit by unit."""


def against_baseline(found: Evaluation, earlier: Baseline) -> list[Verdict]:
    """Return for each data whether the model is as good as an earlier one.

    It is worse where even the upper end of the paired 95 % interval of its recovery is below 1.
    Differences that another processor's rounding makes do not count.
    """
    return [
        verdict(
            Bound(data=data, score="recovery", against=BASELINE, at_least=1.0, where=""),
            found,
            earlier,
        )
        for data in found.versions
        if data in earlier.scores
    ]


def verdict(bound: Bound, found: Evaluation, earlier: Baseline | None = None) -> Verdict:
    """Return whether one bound holds.

    With a confidence, it falls where the whole bootstrap interval lies beyond it; without, where
    the value does. A value that is no number falls.

    Args:
        bound: what must hold.
        found: scores of the model and of the parents that bounds name.
        earlier: what `baseline` stands for.

    Raises:
        RecipeError: the data does not have the score that is bounded.
    """
    value = measured(
        bound.score,
        found.scores[MERGE][bound.data],
        _other(bound, found, earlier),
        confidence=_confidence(bound),
    )
    if bound.at_least is not None:
        holds = value.high >= bound.at_least - ROUNDING
        wanted = f"at least {bound.at_least:g}"
    else:
        limit = bound.at_most if bound.at_most is not None else float("inf")
        holds = value.low <= limit + ROUNDING
        wanted = f"at most {limit:g}"
    name = f"{bound.data}: {bound.score}" + (f" against {bound.against}" if bound.against else "")
    shown = interval_text(value)
    if holds:
        return Verdict(name, shown, wanted, True)
    hint = "accept it with --update-baseline, if it is meant to be so"
    problem = Problem(
        f"{name} is {shown}, must be {wanted}",
        bound.where,
        hint if bound.against == BASELINE else "",
    )
    return Verdict(name, shown, wanted, False, problem)


def interval_text(found: Measured) -> str:
    """Return a number, with its interval where it has one."""
    if found.low == found.high == found.value:
        return f"{found.value:.4f}"
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _confidence(bound: Bound) -> float:
    if bound.confidence is not None:
        return bound.confidence
    return CONFIDENCE if SCORES[bound.score].against == "model" else 0.0


def _other(bound: Bound, found: Evaluation, earlier: Baseline | None) -> Score | Likeness | None:
    name = bound.against
    if name is None:
        return None
    if SCORES[bound.score].against == "parent":
        return found.likeness.get(name, {}).get(bound.data)
    if name in found.scores:
        return found.scores[name][bound.data]
    return earlier.scores[bound.data] if earlier is not None else None
