"""Average the directions of several models, and their lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._arithmetic import negligible, single, weighted_sum
from mergekit_lite.ops._place import Sums
from mergekit_lite.ops._spec import Doc, Vector, combine
from mergekit_lite.ops._sphere import cosines, inner, lengths, shares
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor

VANISHING = 1e-8
"""Length of a mean of unit vectors below which it has no direction."""


def check(params: Mapping[str, Any]) -> list[str]:
    """Weights that sum to nothing have no mean."""
    weights = params.get("weights")
    listed = isinstance(weights, Sequence) and params["normalize"]
    return negligible(weights) if listed and weights is not None else []


def blend(params: Mapping[str, Any], weights: Sequence[float], sums: Sums) -> list[float]:
    """The direction of the weighted sum of directions, times the weighted mean of lengths."""
    given = [single(weight) for weight in weights]
    share = shares(given) if params["normalize"] else given
    size, cosine = lengths(sums.gram), cosines(sums.gram)
    unit = [w if n else 0.0 for w, n in zip(share, size, strict=True)]
    length = math.sqrt(max(inner(unit, cosine, unit), 0.0))
    if len(size) == 1 or length < VANISHING:
        return [single(w) for w in share]
    mean = math.fsum(w * n for w, n in zip(share, size, strict=True))
    return [single(mean / length * w / n) if n else 0.0 for w, n in zip(unit, size, strict=True)]


@combine(
    title="Multi-SLERP",
    paper="none: Goddard 2025, Multi-SLERP, a note on mergekit's method",
    commutative=True,
    idempotent=True,
    needs=Totals(gram=True),
    blend=blend,
    check=check,
    vectors=[
        Vector(
            [[3, 0], [0, 1]],
            [math.sqrt(2), math.sqrt(2)],
            source="half way between the axes, length 2, by hand",
        ),
        Vector(
            [[5, 0], [0, 5]],
            [4, 3],
            weights=[4, 3],
            source="the direction of 4 and 3 with length 5, by hand",
        ),
        Vector(
            [[5, 0], [0, 5]],
            [8, 6],
            {"normalize": False},
            weights=[1.142857, 0.857143],
            source="weights that sum to 2 double it, by hand",
        ),
        Vector([[2, 4], [-1, -2]], [0.5, 1], source="opposite: the plain mean, by hand"),
        Vector([[2, 4], [0, 0]], [1, 2], source="no length counts as length 0, by hand"),
        Vector([[5, 0], [0, 5]], [4, 3], {"space": "weight"}, [4, 3], source="as above, by hand"),
    ],
)
def multislerp(
    inputs: Sequence[Tensor],
    *,
    sums: Sums,
    weights: Sequence[float],
    normalize: Annotated[bool, Doc("divide the weights by their sum")] = True,
    space: Annotated[
        Literal["delta", "weight"], Doc("work on differences to the base, or on whole weights")
    ] = "delta",
) -> Tensor:
    """Average the directions of any number of models on the sphere, and their lengths apart.

    A plain average of directions that differ is shorter than they are; this one is not. The
    tangent step of the published method is always zero, so it is left out.

    Order of operations: in fp64 n_i = sqrt(g_ii), cosines c_ij = g_ij / n_i / n_j; weights rounded
    to fp32 and, with `normalize`, divided by their sum; m = sqrt(sum_ij w_i w_j c_ij), over vectors
    with a length; f_i = float32(sum_j w_j n_j / m * w_i / n_i), and 0 without a length; f_i =
    float32(w_i) where m < 1e-8 or there is one model. Then in fp32 acc = f_0*x0; acc = acc +
    f_1*x1; ...
    """
    params = {"normalize": normalize, "space": space}
    return weighted_sum(inputs, blend(params, weights, sums))
