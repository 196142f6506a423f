"""Keep the merged change only where enough experts want it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._annotations import Lambda
from mergekit_lite.ops._arithmetic import single, weighted_sum
from mergekit_lite.ops._spec import Doc, Range, Vector, combine

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


def check(params: Mapping[str, Any]) -> list[str]:
    """Three of two experts cannot agree."""
    weights, least = params.get("weights"), params["at_least"]
    if not isinstance(weights, Sequence) or len(weights) >= least:
        return []
    return [f"`at_least: {least}` with {len(weights)} experts keeps nothing"]


@combine(
    title="Consensus merging with TALL masks",
    paper="Wang et al. 2024, arXiv 2405.07813",
    experts=(2, None),
    commutative=True,
    check=check,
    vectors=[
        Vector(TAUS, [5, -7, 0, 0.25, 0, 1], source="independent run: two of three at 0.4"),
        Vector(
            TAUS,
            [5, -7, -3, 0.25, 3, 1],
            {"at_least": 1},
            source="independent run: one suffices, nothing is lost here",
        ),
        Vector(TAUS, [0, 0, -3, 0.25, 0, 1], {"at_least": 3, "mask_lambda": 0.2}, source="by hand"),
        Vector([[2, 1], [1, 0]], [3, 0], {"lambda": 1.0}, source="zero claims nothing, by hand"),
        Vector([[2, 1], [1, 1]], [0, 1.5], {"lambda": 0.5}, [2, 1], source="weighted, by hand"),
    ],
)
def consensus(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    mask_lambda: Annotated[
        float,
        Range(above=0),
        Doc("how much of the others' change a task must outweigh to claim an entry"),
    ] = 0.4,
    at_least: Annotated[
        int, Range(at_least=1), Doc("how many experts must claim an entry for it to be kept")
    ] = 2,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Add the task vectors and keep only the entries that several experts lay claim to.

    An expert claims an entry where its own change is larger than `mask_lambda` times what the
    others add to it. Entries that no expert claims hurt all tasks, those of one serve it alone.
    The authors try 0.2 to 0.6 for `mask_lambda`.

    Order of operations: all in fp32, weights, mask_lambda and lambda rounded to fp32 first.
    p_i = w_i*x_i; s = p_0; s = s + p_1; ...; expert i claims where |p_i| > mask_lambda*|s - p_i|;
    y = s where at least `at_least` claim, else +0.0; last y * lambda.
    """
    import torch

    total = weighted_sum(inputs, weights)
    claims = torch.zeros_like(total)
    for tensor, weight in zip(inputs, weights, strict=True):
        share = tensor.float() * single(weight)
        claims = claims + (share.abs() > (total - share).abs() * single(mask_lambda))
    return torch.where(claims >= at_least, total, 0.0) * single(lambda_)
