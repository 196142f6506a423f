"""Average sparse task vectors where they overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._spec import Vector, combine

if TYPE_CHECKING:
    from torch import Tensor


@combine(
    title="Stitch sparse task vectors",
    paper="He et al. 2024, arXiv 2408.13656 (the stitching of Localize-and-Stitch)",
    commutative=True,
    idempotent=True,
    vectors=[
        Vector(
            [[4, 0, 1, 0], [-1, 3, 0, 0]],
            [1.5, 3, 1, 0],
            source="a mean where both are, else the one that is there, by hand",
        ),
        Vector([[4, 0], [1, 3]], [13 / 4, 3], weights=[3, 1], source="(3*4 + 1*1)/4; 3/1, by hand"),
        Vector([[2, 1], [0, 1]], [-2, 0], weights=[-1, 1], source="forgets: -2 over 1, by hand"),
    ],
)
def stitch(inputs: Sequence[Tensor], *, weights: Sequence[float]) -> Tensor:
    """Take each entry from the experts that have it, and average where several do.

    An expert has an entry that is not zero. Weights multiply the task vectors and count in the
    mean; a single expert's entry is so not scaled. Put `graft` or `magnitude` before it.

    Order of operations: all in fp32, weights rounded to fp32 first. num = 0; num = num + w_i*x_i;
    den = 0; den = den + |w_i| where x_i != 0, in order; num / den, and +0.0 where den == 0.
    """
    import torch

    total = torch.zeros_like(inputs[0], dtype=torch.float32)
    mass = torch.zeros_like(total)
    for tensor, weight in zip(inputs, weights, strict=True):
        total = total + tensor.float() * single(weight)
        mass = mass + torch.where(tensor != 0, abs(single(weight)), 0.0)
    return torch.where(mass != 0, total / mass, 0.0)
