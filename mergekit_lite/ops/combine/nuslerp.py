"""Interpolate between two models' changes along an arc."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._arithmetic import negligible, single, weighted_sum
from mergekit_lite.ops._order import TILE
from mergekit_lite.ops._place import Sums
from mergekit_lite.ops._rows import as_rows, column_dots, products_of, row_cosines, row_dots
from mergekit_lite.ops._spec import Doc, Reach, Vector, combine
from mergekit_lite.ops._sphere import COLINEAR, arc, cosines, lengths
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

REACHES: dict[str, Reach] = {"tensor": "element", "row": "row", "column": "tensor"}


def check(params: Mapping[str, Any]) -> list[str]:
    """Weights that sum to nothing have no position between the ends."""
    weights = params.get("weights")
    if isinstance(weights, Sequence) and negligible(weights):
        return ["the weights sum to 0, so there is no position between the two"]
    return []


def position(weights: Sequence[float]) -> float:
    """Return where between the two models the weights point: 0 is the first."""
    first, second = (single(weight) for weight in weights)
    return second / (first + second)


def blend(params: Mapping[str, Any], weights: Sequence[float], sums: Sums) -> list[float]:
    """The factors of the two ends."""
    t = position(weights)
    if not all(lengths(sums.gram)):
        return [single(1.0 - t), single(t)]
    return [single(factor) for factor in arc(t, cosines(sums.gram)[0][1])]


def blend_each(
    params: Mapping[str, Any], weights: Sequence[float], products: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The factors of the two ends of each vector."""
    import numpy as np

    t, cosine = position(weights), row_cosines(products, 0, 1)
    arched = (products[:, 0, 0] > 0) & (products[:, 1, 1] > 0) & (np.abs(cosine) <= COLINEAR)
    angle = np.arccos(np.where(arched, cosine, 0.0))
    ends = [
        np.where(arched, np.sin(share * angle) / np.sin(angle), share) for share in (1.0 - t, t)
    ]
    return np.stack(ends, axis=1).astype(np.float32)


def by_row(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the interpolation of each pair of rows."""
    a, b = as_rows(first), as_rows(second)
    return _blended(a, b, weights, row_dots).reshape(first.shape)


def by_column(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the interpolation of each pair of columns (along the first dimension)."""
    import torch

    a, b = (x.reshape(x.shape[0], math.prod(x.shape[1:])) for x in (first, second))
    result = torch.empty_like(a)
    step = max(1, TILE // max(len(a), 1))
    for column in range(0, a.shape[1], step):
        part = slice(column, column + step)
        left, right = (x[:, part] for x in (a, b))
        result[:, part] = _blended(left, right, weights, column_dots)
    return result.reshape(first.shape)


def _blended(
    a: Tensor, b: Tensor, weights: Sequence[float], dots: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    import torch

    each = torch.from_numpy(blend_each({}, weights, products_of([a, b], dots))).to(a.device)
    left, right = each.t() if dots is column_dots else each.t()[:, :, None]
    result: Tensor = (a * left).add_(b * right)
    return result


@combine(
    title="NuSLERP",
    paper="none: a method of mergekit",
    experts=(2, 2),
    idempotent=True,
    reach="tensor",
    reach_of=lambda params: REACHES[params["unit"]],
    needs=Totals(gram=True, wanted=lambda params: params["unit"] == "tensor"),
    blend=blend,
    blend_each=blend_each,
    check=check,
    vectors=[
        Vector([[1, 0], [0, 2]], [0.70711, 1.41421], source="independent run: a right angle"),
        Vector(
            [[1, 0], [0, 1]],
            [0.86603, 0.5],
            weights=[2, 1],
            source="a third of the way, 30 degrees, by hand",
        ),
        Vector([[1, 2], [2, 4]], [1.25, 2.5], weights=[3, 1], source="parallel: a line, by hand"),
        Vector([[0, 0], [2, 4]], [1, 2], source="no length: a line, by hand"),
        Vector(
            [[[1, 0], [1, 1]], [[0, 2], [3, 3]]],
            [[0.70711, 1.41421], [2, 2]],
            {"unit": "row"},
            source="each row on its own, by hand",
        ),
        Vector(
            [[[1, 1], [0, 1]], [[0, 3], [2, 3]]],
            [[0.70711, 2], [1.41421, 2]],
            {"unit": "column"},
            source="each column on its own, by hand",
        ),
        Vector(
            [[1, 0], [0, 2]],
            [0.70711, 1.41421],
            {"space": "weight"},
            source="independent run: a right angle",
        ),
    ],
)
def nuslerp(
    inputs: Sequence[Tensor],
    *,
    sums: Sums | None,
    weights: Sequence[float],
    unit: Annotated[
        Literal["tensor", "row", "column"],
        Doc("what counts as a vector: the tensor, each row (last dimension) or column (first)"),
    ] = "tensor",
    space: Annotated[
        Literal["delta", "weight"], Doc("work on differences to the base, or on whole weights")
    ] = "delta",
) -> Tensor:
    """Interpolate two models' changes along the arc between them; the weights say how far.

    The position is w1 / (w0 + w1). Changes of two experts point in different directions, where
    whole weights, as `slerp` takes them, are nearly parallel.

    Order of operations: in fp64 cos = g01 / sqrt(g00) / sqrt(g11), angle = acos(cos); f0 =
    float32(sin((1-t)*angle) / sin(angle)), f1 = float32(sin(t*angle) / sin(angle)); f0 =
    float32(1-t), f1 = float32(t) where a vector has no length or |cos| > 1 - 1e-12; then in fp32
    acc = f0*x0; acc = acc + f1*x1. Sums over rows are taken in blocks of
    4096 entries and 16 lanes, those over columns in blocks of 64 rows.

    Raises:
        RecipeError: the weights sum to 0.
    """
    if unit == "tensor" and sums is not None:
        return weighted_sum(inputs, blend({}, weights, sums))
    first, second = inputs[0].float(), inputs[1].float()
    if unit == "row" or first.dim() < 2:
        return by_row(first, second, weights)
    return by_column(first, second, weights)
