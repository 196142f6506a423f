"""Keep of any merge only what enough experts want."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_lite.ops._annotations import Claims, Lambda, MaskLambda
from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._spec import Vector, post
from mergekit_lite.ops.combine.consensus import check, claims, limits

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


@post(
    title="TALL masks over any merge",
    paper="Wang et al. 2024, arXiv 2405.07813",
    check=check,
    vectors=[
        Vector(
            TAUS,
            [5, -7, 0, 0.25, 0, 1],
            source="independent run: of a sum, two of three at 0.4",
        ),
        Vector(
            TAUS,
            [2.5, -3.5, 0, 0.125, 0, 0.5],
            {"lambda": 0.5},
            source="the same, halved",
        ),
        Vector([[2, 1], [1, 1]], [3, 0], {"mask_lambda": {"a": 1.5, "b": 0.4}}, source="by hand"),
    ],
)
def consensus_mask(
    merged: Tensor,
    *,
    deltas: Sequence[Tensor],
    names: Sequence[str],
    mask_lambda: MaskLambda = 0.4,
    at_least: Claims = 2,
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Keep the entries of the merged task vector that several experts lay claim to.

    An expert claims an entry where its task vector, as it was before any transform or weight, is
    larger than `mask_lambda` times its distance to the merged one. The weights of the merge should
    so make a sum, not a mean of the experts. Put it after any combine; what is kept is then
    multiplied by `lambda`. `consensus` is this after a plain sum, `consensus_ties` after TIES.

    Order of operations: all in fp32, mask_lambda and lambda rounded to fp32 first. Expert i claims
    where |x_i| > mask_lambda_i*|m - x_i|; y = m where at least `at_least` claim, else +0.0; last
    y * lambda.
    """
    import torch

    merged = merged.float()
    tasks = [delta.float() for delta in deltas]
    claimed = claims(merged, tasks, limits(mask_lambda, names))
    return torch.where(claimed >= at_least, merged, 0.0) * single(lambda_)
