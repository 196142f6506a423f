"""Draw the average of fine-tunes towards the base, by how much they disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._arithmetic import single, weighted_sum
from mergekit_lite.ops._place import Sums
from mergekit_lite.ops._rows import as_rows, products_of, row_cosines, row_dots
from mergekit_lite.ops._spec import Doc, Vector, combine
from mergekit_lite.ops._sphere import cosines
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]
POLE = 1e-6
"""A divisor smaller than this says nothing about the ratio: the base is kept."""


def ratio(count: int, cosine: float, clamp: bool) -> float:
    """Return the share of the average: 1 where all agree, 0 where they are at right angles."""
    cosine = max(cosine, 0.0) if clamp else cosine
    divisor = 1.0 + (count - 1) * cosine
    return count * cosine / divisor if abs(divisor) > POLE else 0.0


def blend(params: Mapping[str, Any], weights: Sequence[float], sums: Sums) -> list[float]:
    """The same factor for every task vector: the ratio over their number."""
    cosine = cosines(sums.gram)
    count = len(cosine)
    pairs = [cosine[i][j] for i, j in combinations(range(count), 2)]
    mean = math.fsum(pairs) / len(pairs)
    return [single(ratio(count, mean, params["clamp_t"]) / count)] * count


def blend_each(
    params: Mapping[str, Any], weights: Sequence[float], products: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The same factor for every task vector, one for each row."""
    import numpy as np

    count = products.shape[1]
    mean = np.zeros(len(products))
    for i, j in combinations(range(count), 2):
        mean += row_cosines(products, i, j).clip(-1.0, 1.0)
    mean /= count * (count - 1) // 2
    mean = mean.clip(min=0.0) if params["clamp_t"] else mean
    divisor = 1.0 + (count - 1) * mean
    pole = np.abs(divisor) <= POLE
    factor = np.where(pole, 0.0, mean / np.where(pole, 1.0, divisor))
    return np.repeat(factor.astype(np.float32)[:, None], count, axis=1)


def by_row(inputs: Sequence[Tensor], clamp: bool) -> Tensor:
    """Return the result with a ratio of its own for each row."""
    import torch

    rows = [as_rows(tensor.float()) for tensor in inputs]
    factors = blend_each({"clamp_t": clamp}, [], products_of(rows, row_dots))
    factor = torch.from_numpy(factors[:, :1]).to(rows[0].device)
    total = rows[0] * factor
    for row in rows[1:]:
        total += row * factor
    return total.reshape(inputs[0].shape)


@combine(
    title="Model Stock",
    paper="Jang et al. 2024, arXiv 2403.19522",
    aliases=("stock",),
    experts=(2, None),
    commutative=True,
    idempotent=True,
    reach="row",
    reach_of=lambda params: "row" if params["filter_wise"] else "element",
    needs=Totals(gram=True, wanted=lambda params: not params["filter_wise"]),
    blend=blend,
    blend_each=blend_each,
    compat={"mergekit": {"clamp_t": False}},
    vectors=[
        Vector(TAUS, [0] * 6, source="independent run: mean cosine -0.08, the base is kept"),
        Vector(
            TAUS,
            [-0.47665, 0.66731, 0.28599, -0.02383, -0.28599, -0.09533],
            {"clamp_t": False},
            source="independent run: t = -0.28599 times the mean",
        ),
        Vector(
            [[1, 0], [0.3, math.sqrt(0.91)]],
            [0.3, 0.22015],
            tolerance=1e-4,
            source="two at cosine 0.3: t = 0.46154 times the mean, by hand",
        ),
        Vector([[2, 4], [0, 0]], [0, 0], source="against nothing there is no agreement, by hand"),
        Vector(
            [[[1, 0], [2, 4]], [[0.3, math.sqrt(0.91)], [2, 4]]],
            [[0.3, 0.22015], [2, 4]],
            {"filter_wise": True},
            tolerance=1e-4,
            source="each row on its own, by hand",
        ),
    ],
)
def model_stock(
    inputs: Sequence[Tensor],
    *,
    sums: Sums | None,
    filter_wise: Annotated[bool, Doc("judge each row on its own, not the tensor")] = False,
    clamp_t: Annotated[
        bool, Doc("keep the base where the experts disagree, do not go beyond it")
    ] = True,
) -> Tensor:
    """Average the experts and draw the average towards the base where they disagree.

    From the mean cosine c between the k task vectors follows t = k*c / (1 + (k-1)*c), and the
    result is t times their mean. Experts at right angles give the base, equal ones themselves.
    Without `clamp_t` a negative cosine leads away from the average, as the formula says.

    Order of operations: in fp64 c_ij = g_ij / n_i / n_j with n_i = sqrt(g_ii), 0 without a length;
    c = mean over pairs, at least 0 with `clamp_t`; f = float32(t / k), 0 where |1 + (k-1)*c| <=
    1e-6; then in fp32 acc = f*x0; acc = acc + f*x1; ... Sums over rows are taken in blocks
    of 4096 entries and 16 lanes.
    """
    if filter_wise or sums is None:
        return by_row(inputs, clamp_t)
    return weighted_sum(inputs, blend({"clamp_t": clamp_t}, [], sums))
