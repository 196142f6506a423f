"""Fisher merging: each entry as the mean of the experts, by how much each depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._calibration import Wanted
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops.combine.regmean import check, mean, without

if TYPE_CHECKING:
    from torch import Tensor


def statistic(params: Mapping[str, Any], shape: Sequence[int]) -> Wanted:
    """Want one number for each entry."""
    return Wanted(tuple(shape))


def workspace(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
    """Return the bytes of the experts' statistics, which are held whole."""
    entries = 1
    for side in shape:
        entries *= side
    return 8 * inputs * entries


def wants_unit_norm(params: Mapping[str, Any]) -> bool:
    """Return whether each file is divided by its norm."""
    return bool(params.get("normalize"))


@combine(
    title="Fisher-weighted averaging",
    paper="Matena and Raffel 2022, arXiv 2111.09832",
    commutative=True,
    calibration=True,
    check=check,
    statistic=statistic,
    without=without,
    unit_norm=wants_unit_norm,
    workspace=workspace,
    vectors=[
        Vector(
            [[4, 2], [0, 4]],
            [3, 3],
            {"file": {"a": "math.safetensors", "b": "code.safetensors"}},
            calibration=[[3, 1], [1, 1]],
            source="means by 3 to 1 and 1 to 1, by hand",
        ),
        Vector(
            [[4, 2], [0, 4]],
            [2, 3],
            {"floor": 0.5},
            calibration=[[0.1, 2], [0, 2]],
            source="both raised to the floor: the mean, by hand",
        ),
        Vector(
            [[4, 2], [0, 4]],
            [2, 4],
            {"floor": 0.0},
            calibration=[[0, 0], [0, 1]],
            source="nobody cares: the mean; only one does: that one, by hand",
        ),
        Vector(
            [[4, 2], [0, 4]],
            [2.4, 2.5],
            weights=[1, 2],
            calibration=[[3, 6], [1, 1]],
            source="weights multiply: 12 / 5 and 20 / 8, by hand",
        ),
    ],
)
def fisher(
    inputs: Sequence[Tensor],
    *,
    weights: Sequence[float],
    calibration: Sequence[Tensor],
    file: Annotated[str, Doc("statistic file of the expert"), "per_expert"],
    floor: Annotated[
        float, Range(at_least=0), Doc("least value; raise what is smaller, lest noise decide")
    ] = 1e-6,
    normalize: Annotated[
        bool, Doc("divide each expert's statistics by their norm over the whole file first")
    ] = False,
) -> Tensor:
    """Average each entry over the experts by how much each one's predictions depend on it.

    Data: one safetensors file an expert, with a tensor of the name and shape of each weight: the
    diagonal of its Fisher information, the mean over data of the squared gradient of the log
    probability of labels drawn from the model. Tensors without one (frozen ones) get the plain
    mean; `plan` names them.

    The result is sum w F t / sum w F over experts, F raised to `floor`; where all F are zero it is
    the mean. Fishers of language models are often far below the default floor of 1e-6 (the
    authors'), which makes them all alike: look at yours, and lower it or set `normalize`.

    Order of operations: f = w * max(F, floor); top = f0*t0; top = top + f1*t1; ...; bottom = f0;
    bottom = bottom + f1; ...; top / bottom. All in fp32, w and floor rounded to fp32 first.
    """
    top = bottom = None
    for delta, weight, each in zip(inputs, weights, calibration, strict=True):
        factor = each.float().clamp(min=single(floor)) * single(weight)
        top = factor * delta if top is None else top + factor * delta
        bottom = factor if bottom is None else bottom + factor
    if top is None or bottom is None:
        return mean(inputs, weights)
    known = bottom != 0
    return (top / bottom.where(known, bottom + 1)).where(known, mean(inputs, weights))
