"""Add what one expert changed, average what several did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._spec import Doc, Range, Vector, combine

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


@combine(
    title="RAM: reinforced agent merging",
    paper="Yuan et al. 2026, arXiv 2601.13572",
    commutative=True,
    idempotent=True,
    vectors=[
        Vector(
            TAUS,
            [5 / 3, -7 / 3, -1, 1 / 12, 3, 1 / 3],
            source="independent run: the fifth entry is changed by one expert alone",
        ),
        Vector(
            [[1e-5, 1e-6, 3], [2, 0, 1]],
            [2, 0, 2],
            source="a change of 1e-5 or less is none, by hand",
        ),
        Vector([[1, 4], [2, 2]], [2, 3], {"epsilon": 1.5}, source="none up to 1.5, by hand"),
    ],
)
def ram(
    inputs: Sequence[Tensor],
    *,
    epsilon: Annotated[
        float, Range(at_least=0), Doc("a change of at most this magnitude counts as none")
    ] = 1e-5,
) -> Tensor:
    """Add what a single expert changed in full, and average what several have changed.

    Meant for experts of reinforcement learning, whose task vectors are mostly exactly zero. Dense
    task vectors are merely averaged.

    Order of operations: all in fp32. Expert i is active where |x_i| > epsilon. num = 0; num = num
    + x_i over active i, in order; n = how many are active; num / max(n, 1).
    """
    import torch

    limit = single(epsilon)
    total = torch.zeros_like(inputs[0], dtype=torch.float32)
    active = torch.zeros_like(total)
    for tensor in inputs:
        counts = tensor.abs() > limit
        total = total + torch.where(counts, tensor.float(), 0.0)
        active = active + counts
    return total / active.clamp(min=1.0)
