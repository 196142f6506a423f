"""Trim a task vector to the entries that stand out from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._place import Place, Sums
from mergekit_lite.ops._spec import Doc, Range, Vector, transform
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor


def entries_and_ones(
    values: Sequence[Tensor], place: Place, params: Mapping[str, Any]
) -> list[Tensor]:
    """What is summed: the entries, and ones, whose sum is how many there are."""
    import torch

    return [values[0], torch.ones_like(values[0])]


def asked(params: Mapping[str, Any]) -> bool:
    """A tensor that is spared needs no sums."""
    return params.get("factor", 0.0) is not None


def shaped(params: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
    """Norm gains and biases are spared, save where the whole model is looked at."""
    spared = params["spare_1d"] and len(shape) < 2 and params["scope"] != "model"
    return {**params, "factor": None} if spared else params


def bounds(sums: Sums) -> tuple[float, float]:
    """Return the mean and the standard deviation (of a sample) that sums stand for, in fp64."""
    total, count = sums.plain
    if count < 2:
        return (total if count else 0.0), 0.0
    return total / count, math.sqrt(max(sums.gram[0][0] - total * total / count, 0.0) / (count - 1))


@transform(
    title="Pruning of task vectors by standard deviation",
    paper="Yadav et al. 2023, arXiv 2306.01708 (the trim `std` of the authors' code)",
    needs=Totals(
        plain=True,
        gram=True,
        inputs=entries_and_ones,
        wanted=asked,
        scope="scope",
        depends=(),
        of_zeros=(0.0, 1.0),
    ),
    shaped=shaped,
    vectors=[
        Vector(
            [[[1, 2, 3, -6]]],
            [[0, 0, 0, -6]],
            {"factor": 1.0},
            source="mean 0, deviation the root of 50/3, 4.08, by hand",
        ),
        Vector(
            [[[0, 2, 4, 6, 13]]],
            [[0, 0, 0, 0, 13]],
            {"factor": 1.0},
            source="mean 5, deviation 5: -5 is not beyond it, 8 is, by hand",
        ),
        Vector(
            [[[1, 2, 3, -6]]],
            [[1, 2, 3, -6]],
            {"factor": 0.0, "scope": "model"},
            source="all that is not the mean itself, by hand",
        ),
        Vector([[1, 2, 3, -6]], [1, 2, 3, -6], source="a 1-D tensor is spared"),
        Vector(
            [[1, 2, 3, -6]], [0, 0, 0, -6], {"spare_1d": False}, source="unless it is not, by hand"
        ),
    ],
)
def deviation(
    delta: Tensor,
    *,
    sums: Sums | None,
    factor: Annotated[
        float | None,
        Range(at_least=0),
        Doc("how many standard deviations from the mean an entry must be to be kept; null: all"),
        "per_expert",
    ] = 1.28,
    scope: Annotated[
        Literal["tensor", "model"],
        Doc("mean and deviation of each tensor, or of all of the model together (the authors)"),
    ] = "tensor",
    spare_1d: Annotated[
        bool, Doc("leave 1-D tensors, such as norms and biases, as they are, save with `model`")
    ] = True,
) -> Tensor:
    """Keep the entries that are far from the mean and set all others to zero.

    The distance is told in standard deviations; of entries that are normally distributed 1.28
    keeps a fifth. How many are kept so depends on how heavy the tails are.

    Order of operations: n entries, sum S and sum of squares Q in fp64; m = S/n,
    s = sqrt((Q - S S/n) / (n - 1)), 0 for n < 2; y = x where |x - float32(m)| > float32(factor s),
    in fp32, else +0.0.
    """
    import torch

    delta = delta.float()
    if factor is None or sums is None:
        return delta
    mean, spread = bounds(sums)
    far = (delta - single(mean)).abs() > single(factor * spread)
    return torch.where(far, delta, 0.0)
