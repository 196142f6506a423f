"""Task arithmetic in the trust region: leave out where the experts disturb one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._arithmetic import weighted_sum
from mergekit_lite.ops._place import Cut, Place
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._statistics import Order

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


def sensitivity(values: Sequence[Tensor]) -> Tensor:
    """Return how much the experts disturb one another at each entry: sum over i < j |x_i x_j|."""
    import torch

    before = values[0].float().abs()
    total = torch.zeros_like(before)
    for value in values[1:]:
        size = value.float().abs()
        total = total + before * size
        before = before + size
    return total


def disturbance(values: Sequence[Tensor], place: Place, params: Mapping[str, Any]) -> list[Tensor]:
    """What the whole model is ranked by."""
    return [sensitivity(values)]


def ranks(params: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """Entries at or above the quantile, which lies between the neighbours of this rank."""
    return (size - math.ceil(params["quantile"] * (size - 1)),) if size > 1 else ()


@combine(
    title="Task arithmetic in the trust region",
    paper="Sun et al. 2025, OpenReview q3ztjJRQuJ (ICLR 2025)",
    commutative=True,
    needs=Order(ranks, whole=True, inputs=disturbance, depends=("quantile",)),
    vectors=[
        Vector(
            TAUS,
            [5, 0, -3, 0.25, 3, 1],
            {"quantile": 0.99},
            source="disturbances 14 23 20 .375 0 8: the largest is left out, by hand",
        ),
        Vector(
            TAUS,
            [0, 0, 0, 0.25, 3, 1],
            {"quantile": 0.5},
            source="those at or above the median, which lies between 8 and 14, by hand",
        ),
        Vector([[1, 0], [0, 2]], [1, 2], source="where nothing is shared all is kept, by hand"),
        Vector([[3, 1], [1, 2]], [0, 2.5], {"quantile": 0.5}, weights=[0.5, 1], source="by hand"),
    ],
)
def tatr(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    cut: tuple[Cut, ...],
    quantile: Annotated[
        float,
        Range(at_least=0, at_most=1),
        Doc("share of the model's entries that is kept: those least disturbed"),
    ] = 0.99,
) -> Tensor:
    """Add the task vectors, save where they disturb one another the most.

    An entry's disturbance is the sum over pairs of experts of |x_i| |x_j|, which stands for the
    gradient of one task times the change of another (the paper's form without data). Entries at or
    above the quantile of the whole model are left as in the base; an entry that only one expert
    has changed is never left out. A cheap filter for dense task vectors.

    Order of operations: all in fp32. d = 0; t = |x_0|; d = d + t*|x_1|; t = t + |x_1|; d = d +
    t*|x_2|; ... y = w0*x0; y = y + w1*x1; ...; +0.0 where d > 0 and d is among the
    n - ceil(quantile * (n-1)) largest of all n entries of the model, or tied with the last.
    """
    import torch

    total = weighted_sum(inputs, weights)
    if not cut:
        return total
    disturbed = sensitivity(inputs)
    out = (disturbed > 0) & (disturbed >= cut[0].threshold)
    return torch.where(out, 0.0, total)
