"""Candidates that were scored, and which of them are best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_lite.errors import DataError
from mergekit_lite.recipe.schema import SCORES, Objective


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        number: in order, from 0.
        values: of its parameters.
        scores: values of the objectives, in their order; of one that was left, over the part of
            the data that was looked at.
        loss: one number for them, less is better.
        state: `complete`, `pruned` (left on the way) or `failed`.
        error: why it failed.
    """

    number: int
    values: Mapping[str, Any]
    scores: tuple[float, ...]
    loss: float
    state: str
    error: str = ""


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the candidate with the least loss, the first of equal ones.

    Raises:
        DataError: none was scored to the end.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        reasons = list(dict.fromkeys(trial.error for trial in trials if trial.error))
        what = "no candidate could be merged and scored"
        raise DataError(what, hint="; ".join(reasons[:3]))
    return min(complete, key=lambda trial: (trial.loss, trial.number))


def front_of(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the candidates to which no other is better in one objective and as good in all."""
    complete = [trial for trial in trials if trial.state == "complete"]
    signs = [-1.0 if SCORES[objective.score].rises else 1.0 for objective in objectives]
    losses = [tuple(s * v for s, v in zip(signs, t.scores, strict=True)) for t in complete]

    def beaten(own: tuple[float, ...]) -> bool:
        return any(
            other != own and all(o <= w for o, w in zip(other, own, strict=True))
            for other in losses
        )

    front: dict[tuple[float, ...], Trial] = {}
    for trial, own in zip(complete, losses, strict=True):
        if not beaten(own):
            front.setdefault(own, trial)
    return list(front.values())
