"""Keep the largest change of each entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_lite.ops._annotations import Lambda
from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._spec import Vector, combine

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


@combine(
    title="MagMax: maximum magnitude selection",
    paper="Marczak et al. 2024, arXiv 2407.06322",
    idempotent=True,
    vectors=[
        Vector(
            TAUS, [4, -5, -6, -0.5, 3, 2], source="by hand; of equal magnitudes the later one wins"
        ),
        Vector(TAUS[::-1], [4, -5, -6, 0.5, 3, -2], source="by hand: the other order"),
        Vector(TAUS, [2, -2.5, -3, -0.25, 1.5, 1], {"lambda": 0.5}, source="halved, by hand"),
        Vector([[2, 2], [1, -4]], [3, -4], weights=[1.5, 1], source="weighted, by hand"),
    ],
)
def magmax(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    lambda_: Lambda = 1.0,
) -> Tensor:
    """Keep, for each entry, the task vector that changes it most.

    Meant for experts that were trained one after the other; the authors use lambda 0.5 for eight.
    Of equal magnitudes the later expert's entry is kept. Weights multiply the task vectors first.

    Order of operations: all in fp32, weights and lambda rounded to fp32 first. p_i = w_i*x_i;
    y = p_0; y = p_i where |p_i| >= |y|, in order; last y * lambda.
    """
    import torch

    best = inputs[0].float() * single(weights[0])
    for tensor, weight in zip(inputs[1:], weights[1:], strict=True):
        share = tensor.float() * single(weight)
        best = torch.where(share.abs() >= best.abs(), share, best)
    return best * single(lambda_)
