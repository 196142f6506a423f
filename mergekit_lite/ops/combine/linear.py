"""Average whole weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops._annotations import Normalize
from mergekit_lite.ops._arithmetic import divide, negligible, total_weight, weighted_sum
from mergekit_lite.ops._spec import Vector, combine

if TYPE_CHECKING:
    from torch import Tensor


def check(params: Mapping[str, Any]) -> list[str]:
    """Weights that sum to nothing have no mean."""
    weights = params.get("weights")
    listed = isinstance(weights, Sequence) and params["normalize"]
    return negligible(weights) if listed and weights is not None else []


@combine(
    title="Linear average (model soup)",
    paper="Wortsman et al. 2022, arXiv 2203.05482",
    space="weight",
    aliases=("soup", "uniform_soup"),
    commutative=True,
    idempotent=True,
    check=check,
    vectors=[
        Vector([[1, 2], [3, -2]], [2, 0], source="plain mean, by hand"),
        Vector([[1, 2], [3, -2]], [2.5, -1], weights=[1, 3], source="weighted mean, by hand"),
        Vector(
            [[1, 2], [3, -2]],
            [10, -4],
            {"normalize": False},
            weights=[1, 3],
            source="weighted sum, by hand",
        ),
    ],
)
def linear(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    normalize: Normalize = True,
) -> Tensor:
    """Average the weights of all models, entry by entry.

    Order of operations: acc = w0*x0; acc = acc + w1*x1; ...; with `normalize`, acc / wsum, where
    wsum = w0; wsum = wsum + w1; ... All in fp32, weights rounded to fp32 first.

    Raises:
        RecipeError: the weights to normalise by sum to 0.
    """
    if normalize and negligible(weights):
        raise RecipeError(negligible(weights)[0], "linear", "give other weights")
    total = weighted_sum(inputs, weights)
    return divide(total, total_weight(weights)) if normalize else total
