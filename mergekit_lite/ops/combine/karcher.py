"""The mean of several models on the sphere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._arithmetic import negligible, single, weighted_sum
from mergekit_lite.ops._place import Sums
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._sphere import COLINEAR, Matrix, cosines, inner, lengths, shares
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor


def check(params: Mapping[str, Any]) -> list[str]:
    """Weights that sum to nothing have no mean."""
    weights = params.get("weights")
    return negligible(weights) if isinstance(weights, Sequence) else []


def mean_direction(
    share: Sequence[float], cosine: Matrix, max_iter: int, tol: float
) -> list[float]:
    """Return the factors of unit vectors whose sum is their mean on the sphere.

    Args:
        share: weights of the vectors, summing to 1.
        cosine: of all pairs.
    """
    mean = _unit(list(share), cosine)
    if mean is None:  # the directions cancel: any of them is as good a start
        mean = [1.0] + [0.0] * (len(share) - 1)
    for _ in range(max_iter):
        tangent = [0.0] * len(share)
        for i, weight in enumerate(share):
            dot = math.fsum(m * c for m, c in zip(mean, cosine[i], strict=True))
            if abs(dot) > COLINEAR:  # there already, or opposite, where no direction leads
                continue
            angle = math.acos(dot)
            pull = weight * angle / math.sin(angle)
            tangent = [t - pull * dot * m for t, m in zip(tangent, mean, strict=True)]
            tangent[i] += pull
        step = math.sqrt(max(inner(tangent, cosine, tangent), 0.0))
        if step < tol:
            break
        along, aside = math.cos(step), math.sin(step) / step
        moved = [along * m + aside * t for m, t in zip(mean, tangent, strict=True)]
        mean = _unit(moved, cosine) or mean
    return mean


def _unit(factors: Sequence[float], cosine: Matrix) -> list[float] | None:
    length = math.sqrt(max(inner(factors, cosine, factors), 0.0))
    return [factor / length for factor in factors] if length > 1e-8 else None


def blend(params: Mapping[str, Any], weights: Sequence[float], sums: Sums) -> list[float]:
    """The mean direction times the weighted mean of lengths."""
    share = shares([single(weight) for weight in weights])
    size, cosine = lengths(sums.gram), cosines(sums.gram)
    real = [i for i, n in enumerate(size) if n]
    total = math.fsum(share[i] for i in real)
    if len(size) == 1 or not real or abs(total) < 1e-8:
        return [single(w) for w in share]
    mean = math.fsum(w * n for w, n in zip(share, size, strict=True))
    direction = mean_direction(
        [share[i] / total for i in real],
        [[cosine[i][j] for j in real] for i in real],
        params["max_iter"],
        params["tol"],
    )
    factors = [0.0] * len(size)
    for i, factor in zip(real, direction, strict=True):
        factors[i] = single(mean * factor / size[i])
    return factors


ROOT = math.sqrt(0.5)


@combine(
    title="Karcher mean",
    paper="Karcher 1977, Riemannian center of mass; as a merge: arXiv 2603.04972",
    space="weight",
    commutative=True,
    idempotent=True,
    needs=Totals(gram=True),
    blend=blend,
    check=check,
    vectors=[
        Vector(
            [[3, 0], [0, 1]],
            [2 * ROOT, 2 * ROOT],
            source="half way between the axes, length 2, by hand",
        ),
        Vector(
            [[1, 0], [0, 1]],
            [math.cos(math.pi / 6), math.sin(math.pi / 6)],
            weights=[2, 1],
            tolerance=2e-5,
            source="a third of the way along the arc, by hand",
        ),
        Vector(
            [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [3**-0.5] * 3,
            source="the middle of the three axes, by hand",
        ),
        Vector([[2, 4], [0, 0]], [1, 2], source="no length counts as length 0, by hand"),
        Vector(
            [[3, 0], [0, 1]], [2 * ROOT, 2 * ROOT], {"space": "delta"}, source="the same, by hand"
        ),
    ],
)
def karcher(
    inputs: Sequence[Tensor],
    *,
    sums: Sums,
    weights: Sequence[float],
    max_iter: Annotated[int, Range(at_least=0), Doc("how many steps are taken at most")] = 10,
    tol: Annotated[float, Range(above=0), Doc("length of a step at which it ends")] = 1e-5,
    space: Annotated[
        Literal["delta", "weight"], Doc("work on differences to the base, or on whole weights")
    ] = "weight",
) -> Tensor:
    """Take the point on the sphere that is nearest to the directions of all models.

    It is found in steps; its length is the weighted mean of the models' lengths. With whole
    weights the base counts as a model if `weights` names it.

    Order of operations: in fp64 n_i = sqrt(g_ii), cosines c_ij = g_ij / n_i / n_j; u begins as the
    unit vector along sum_i w_i x_i / n_i. In each step T = sum_i w_i * a_i / sin(a_i) * (x_i / n_i
    - cos(a_i) * u), where a_i is the angle to u (models that lie at u or opposite are left out);
    it ends where |T| < tol; else u = cos|T| * u + sin|T| * T / |T|, made a unit vector. u is kept
    as factors of the x_i / n_i, so all this needs the cosines only. f_i = float32(sum_j w_j n_j *
    u_i / n_i), and 0 without a length. Then in fp32 acc = f_0*x0; acc = acc + f_1*x1; ...
    """
    params = {"max_iter": max_iter, "tol": tol, "space": space}
    return weighted_sum(inputs, blend(params, weights, sums))
