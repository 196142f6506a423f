"""Interpolate along the arc between two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._arithmetic import single, weighted_sum
from mergekit_lite.ops._place import Sums
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor


def arc_weights(t: float, dot_threshold: float, sums: Sums) -> tuple[float, float]:
    """Return the fp32 weights of the two ends at position t of the arc between them."""
    (aa, ab), (_, bb) = sums.gram
    norms = math.sqrt(aa) * math.sqrt(bb)
    cosine = ab / norms if norms else 1.0
    # Not `abs(cosine) > threshold`: a NaN must not reach acos.
    if not abs(cosine) <= min(dot_threshold, 1.0):
        return single(1.0 - t), single(t)
    angle = math.acos(cosine)
    if angle == 0 or math.sin(angle) == 0:
        return single(1.0 - t), single(t)
    sine = math.sin(angle)
    return single(math.sin((1.0 - t) * angle) / sine), single(math.sin(t * angle) / sine)


def blend(params: Mapping[str, Any], weights: Sequence[float], sums: Sums) -> Sequence[float]:
    """The weights of the two ends."""
    return arc_weights(params["t"], params["dot_threshold"], sums)


@combine(
    title="Spherical linear interpolation",
    paper="Shoemake 1985, Animating rotation with quaternion curves",
    space="weight",
    experts=(1, 2),
    base_fills=True,
    idempotent=True,
    needs=Totals(gram=True),
    blend=blend,
    vectors=[
        Vector(
            [[1, 0], [0, 2]],
            [0.70711, 1.41421],
            {"t": 0.5},
            source="independent run: a right angle",
        ),
        Vector([[1, 0], [0, 2]], [1, 0], {"t": 0.0}, source="t 0 is the first, by hand"),
        Vector([[1, 2], [2, 4]], [1.25, 2.5], {"t": 0.25}, source="parallel: a line, by hand"),
        Vector([[0, 0], [2, 4]], [1, 2], {"t": 0.5}, source="zero norm: a line, by hand"),
        Vector([[1, 2], [-1, -2]], [0.5, 1], {"t": 0.25}, source="opposite: a line, by hand"),
    ],
)
def slerp(
    inputs: Sequence[Tensor],
    *,
    sums: Sums,
    t: Annotated[
        float, Range(at_least=0, at_most=1), Doc("position: 0 is the first model, 1 the second")
    ] = 0.5,
    dot_threshold: Annotated[
        float,
        Range(above=0, at_most=1),
        Doc("interpolate on a line where the cosine is larger than this"),
    ] = 0.9995,
) -> Tensor:
    """Interpolate two models along the arc between them, tensor by tensor.

    Takes two experts, or one, with the base as the other end (t = 0). Fine-tunes of one base are
    nearly parallel, where this is plain linear interpolation.

    Order of operations: in fp64 n = sqrt(g00) * sqrt(g11), cos = g01 / n, angle = acos(cos); c0 =
    float32(sin((1-t)*angle) / sin(angle)), c1 = float32(sin(t*angle) / sin(angle)); c0 =
    float32(1-t), c1 = float32(t) where n is 0 or |cos| > dot_threshold; then in fp32 acc = c0*x0;
    acc = acc + c1*x1.
    """
    return weighted_sum(inputs, arc_weights(t, dot_threshold, sums))
