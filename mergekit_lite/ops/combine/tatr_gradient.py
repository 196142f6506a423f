"""Task arithmetic in the trust region, with gradients of the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._arithmetic import weighted_sum
from mergekit_lite.ops._calibration import Wanted
from mergekit_lite.ops._place import Cut, Place
from mergekit_lite.ops._spec import Doc, Range, StandIn, Vector, combine
from mergekit_lite.ops._statistics import Order
from mergekit_lite.ops.combine.tatr import ranks

if TYPE_CHECKING:
    from torch import Tensor


def statistic(params: Mapping[str, Any], shape: Sequence[int]) -> Wanted:
    """Want one number for each entry."""
    return Wanted(tuple(shape))


def without(params: Mapping[str, Any], inputs: int) -> StandIn:
    """Keep all where there is no gradient: nothing is known to be disturbed."""
    return "task_arithmetic", {}


def sensitivity(values: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return how much the experts disturb one another's tasks: sum over i != j of |g_i x_j|."""
    import torch

    changes, slopes = values[0].float().abs(), gradients[0].float().abs()
    total = torch.zeros_like(changes)
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        change, slope = value.float().abs(), gradient.float().abs()
        total = total + slopes * change
        total = total + slope * changes
        changes, slopes = changes + change, slopes + slope
    return total


def disturbance(values: Sequence[Tensor], place: Place, params: Mapping[str, Any]) -> list[Tensor]:
    """What the whole model is ranked by: half of the values are task vectors, half gradients."""
    experts = len(values) // 2
    return [sensitivity(values[:experts], values[experts:])]


@combine(
    title="Task arithmetic in the trust region, with gradients",
    paper="Sun et al. 2025, OpenReview q3ztjJRQuJ (ICLR 2025)",
    commutative=True,
    calibration=True,
    statistic=statistic,
    without=without,
    needs=Order(ranks, whole=True, inputs=disturbance, depends=("quantile", "file")),
    vectors=[
        Vector(
            [[4, -3, 1], [-1, -5, 2]],
            [3, 0, 3],
            {"file": {"a": "math.safetensors", "b": "code.safetensors"}, "quantile": 0.9},
            calibration=[[1, 1, 1], [0, 1, 3]],
            source="1*1 + 0*4; 1*5 + 1*3; 1*2 + 3*1: the second is left out, by hand",
        ),
        Vector(
            [[4, -3, 1], [-1, -5, 2]],
            [3, -8, 3],
            {"quantile": 0.0},
            calibration=[[0, 0, 0], [0, 0, 0]],
            source="no gradient, no disturbance, by hand",
        ),
    ],
)
def tatr_gradient(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    calibration: Sequence[Tensor],
    cut: tuple[Cut, ...],
    file: Annotated[str, Doc("file of the expert's gradients"), "per_expert"],
    quantile: Annotated[
        float,
        Range(at_least=0, at_most=1),
        Doc("share of the model's entries that is kept: those least disturbed"),
    ] = 0.99,
) -> Tensor:
    """Add the task vectors, save where one expert's change meets a steep slope of another's task.

    Data: one safetensors file an expert, with a tensor of the name and shape of each weight: the
    mean magnitude of the base's gradients on some hundred examples of the expert's task. Tensors
    without one are added in full; `plan` names them. `tatr` does without data.

    Order of operations: all in fp32. d = 0; g = |g_0|; t = |x_0|; then for i = 1, 2, ...: d = d +
    g*|x_i|; d = d + |g_i|*t; t = t + |x_i|; g = g + |g_i|. y = w0*x0; y = y + w1*x1; ...; +0.0
    where d > 0 and d is among the n - ceil(quantile * (n-1)) largest of all n entries of the model,
    or tied with the last.
    """
    import torch

    total = weighted_sum(inputs, weights)
    if not cut:
        return total
    disturbed = sensitivity(inputs, calibration)
    out = (disturbed > 0) & (disturbed >= cut[0].threshold)
    return torch.where(out, 0.0, total)
