"""Move towards a second model, by at most a given step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._spec import Doc, Range, Vector, combine

if TYPE_CHECKING:
    from torch import Tensor


@combine(
    title="NearSwap",
    paper="none: a recipe of the community (alchemonaut, QuartetAnemoi-70B)",
    experts=(1, 1),
    vectors=[
        Vector([[0.5, -0.05, 0, -3]], [0.1, -0.05, 0, -0.1], {"t": 0.1}, source="by hand"),
        Vector([[0.5, -0.05]], [0.5, -0.05], {"t": 1.0}, source="a large t: the expert, by hand"),
        Vector([[0.5, -0.05]], [0, 0], {"t": 0.0}, source="t 0 is the base, by hand"),
    ],
)
def nearswap(
    inputs: Sequence[Tensor],
    *,
    t: Annotated[float, Range(at_least=0), Doc("largest change of an entry, in units of weights")],
) -> Tensor:
    """Take the expert's entry where it is near the base's, and else move towards it by `t`.

    Equal to interpolating each entry by min(1, t / |difference|). Models of the community use
    t = 0.0001.

    Order of operations: y = x clipped to [-t, t], t rounded to fp32 first.
    """
    limit = single(t)
    return inputs[0].float().clamp(-limit, limit)
