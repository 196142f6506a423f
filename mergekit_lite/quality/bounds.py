"""Bounds on scores, and whether they hold."""

from __future__ import annotations

from mergekit_lite.errors import Problem
from mergekit_lite.quality.measures import Measured, measured
from mergekit_lite.quality.results import BASELINE, Baseline
from mergekit_lite.quality.scores import Evaluation
from mergekit_lite.quality.subjects import MERGE
from mergekit_lite.quality.verdicts import Verdict

ROUNDING = 1e-4


def against_baseline(found: Evaluation, earlier: Baseline) -> list[Verdict]:
    """Return for each data whether the model is as good as an earlier one.

    It is worse where even the upper end of the paired 95 % interval of its recovery is below 1.
    Differences that another processor's rounding makes do not count.
    """
    return [
        _verdict(data, measured("recovery", found.scores[MERGE][data], score))
        for data, score in earlier.scores.items()
        if data in found.versions
    ]


def _verdict(data: str, recovery: Measured) -> Verdict:
    name = f"{data}: recovery of {BASELINE}"
    shown = interval_text(recovery)
    holds = recovery.high >= 1 - ROUNDING
    hint = "accept it with --update-baseline, if it is meant to be so"
    problem = None if holds else Problem(f"{shown}, worse than the baseline", name, hint)
    return Verdict(name, shown, "1 within its interval, or above", holds, problem)


def interval_text(found: Measured) -> str:
    """Return a number, with its interval where it has one."""
    if found.low == found.high == found.value:
        return f"{found.value:.4f}"
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"
