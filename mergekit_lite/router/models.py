"""Which model each label goes to, by what models scored on it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import comb

from mergekit_lite.errors import Problem, RecipeError

_MOST = 100_000


def choose_models(
    scores: Mapping[str, Mapping[str, float]], most: int | None = None
) -> dict[str, str]:
    """Return the best model of each label, among no more than `most` models.

    The second step of a Composition of Experts (arXiv:2412.01868): of all choices of so many
    models, the one whose best scores add up to most. Ties go to the model that comes first by name.

    Args:
        scores: label -> model -> score, higher is better.
        most: how many models there is memory for; None for all.

    Raises:
        RecipeError: a label lacks the score of a model, or there are too many choices to try.
    """
    names = sorted({model for row in scores.values() for model in row})
    problems = [
        Problem(f"label `{label}` has no score of model `{model}`", "", "score each model on each")
        for label, row in scores.items()
        for model in names
        if model not in row
    ]
    if problems:
        raise RecipeError(problems)
    count = min(most or len(names), len(names))
    if comb(len(names), count) > _MOST:
        raise RecipeError(
            f"{count} of {len(names)} models can be chosen in more than {_MOST:,} ways",
            hint="leave out models that are best at nothing",
        )
    kept = max(
        combinations(names, count),
        key=lambda some: sum(max(row[model] for model in some) for row in scores.values()),
    )
    return {label: max(kept, key=lambda model: row[model]) for label, row in scores.items()}
