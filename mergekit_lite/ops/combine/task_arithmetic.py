"""Add task vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops._annotations import Lambda, Normalize
from mergekit_lite.ops._arithmetic import (
    divide,
    negligible,
    single,
    total_weight,
    weighted_sum,
)
from mergekit_lite.ops._spec import Vector, combine

if TYPE_CHECKING:
    from torch import Tensor


def check(params: Mapping[str, Any]) -> list[str]:
    """Weights that sum to nothing have no mean."""
    weights = params.get("weights")
    listed = isinstance(weights, Sequence) and params["normalize"]
    return negligible(weights) if listed and weights is not None else []


TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


@combine(
    title="Task arithmetic",
    paper="Ilharco et al. 2023, arXiv 2212.04089",
    aliases=("ta",),
    commutative=True,
    check=check,
    vectors=[
        Vector(TAUS, [5, -7, -3, 0.25, 3, 1], source="independent run: sum, lambda 1"),
        Vector([[2, -4]], [-1, 2], {"lambda": 0.5}, weights=[-1], source="forgetting, by hand"),
        Vector(
            [[1, 2], [3, -2]],
            [5, -2],
            {"normalize": True, "lambda": 2.0},
            weights=[1, 3],
            source="mean times lambda, by hand",
        ),
    ],
)
def task_arithmetic(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    normalize: Normalize = False,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Add the task vectors, each times its weight, and scale the sum by lambda.

    A negative weight takes a task away. The authors tune lambda from 0.05 to 1.0.

    Order of operations: acc = w0*x0; acc = acc + w1*x1; ...; with `normalize`, acc = acc / wsum,
    where wsum = w0; wsum = wsum + w1; ...; last acc * lambda. All in fp32, weights and lambda
    rounded to fp32 first.

    Raises:
        RecipeError: the weights to normalise by sum to 0.
    """
    if normalize and negligible(weights):
        raise RecipeError(negligible(weights)[0], "task_arithmetic", "give other weights")
    total = weighted_sum(inputs, weights)
    if normalize:
        total = divide(total, total_weight(weights))
    return total * single(lambda_)
