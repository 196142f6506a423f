"""CART: the mean of all models plus what each adds to it, at low rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._spectral import (
    Embeddings,
    FlattenConv,
    factorising,
    is_treated,
    mean,
    mean_instead,
    on_matrices,
    top_svd,
    workspace,
)

if TYPE_CHECKING:
    from torch import Tensor


@combine(
    title="Centered arithmetic with rank-reduced task vectors",
    paper="Choi et al. 2024, arXiv 2412.12153",
    reach="tensor",
    commutative=True,
    instead=mean_instead,
    workspace=workspace,
    work=factorising(1),
    vectors=[
        Vector(
            [[[4, 0], [0, 0]], [[0, 0], [0, 2]]],
            [[2, 0], [0, 1]],
            {"rank_fraction": 1.0},
            source="at full rank the differences to the mean cancel, by hand",
        ),
        Vector(
            [[[4, 0], [0, 0]], [[0, 0], [0, 2]], [[2, 0], [0, 1]]],
            [[2, 0], [0, 1]],
            {"lambda": 0.0},
            source="lambda 0 is the mean, by hand",
        ),
        Vector(
            [[[9, 0], [0, 0]], [[0, 0], [0, 6]], [[0, 0], [0, 0]]],
            [[6, 0], [0, 6]],
            {"rank_fraction": 0.5},
            source="mean (3, 2); of (6, -2), (-3, 4), (-3, -2) the larger: 3 + 6 - 3, 2 + 4",
        ),
        Vector([[1, 2], [3, -2]], [2, 0], source="not a matrix: the mean"),
    ],
)
def cart(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    weights: Sequence[float],
    lambda_: Annotated[float, Doc("multiplies what the tasks add to the mean; to be tuned")] = 1.0,
    rank_fraction: Annotated[
        float,
        Range(above=0, at_most=1),
        Doc("part of the singular components kept of each difference to the mean"),
    ] = 0.08,
    embeddings: Embeddings = False,
    flatten_conv: FlattenConv = False,
) -> Tensor:
    """Average the models and add the leading components of each one's difference to the average.

    With m the mean of the task vectors, each times its weight, the merged task vector is m plus
    lambda times the sum over experts of the difference to m at rank k, where k is `rank_fraction`
    of the shorter side, at least 1. Experts that leave the tensor alone count: they are models of
    their own. Up to an eighth of all components is found by random subspace iteration with a probe
    fixed by the tensor's name, until the captured energy settles to one part in a million.

    Tensors that are no matrices, and embeddings and head, get the mean of the weighted task
    vectors.

    Order of operations: mean and differences in fp32 in the order of the experts; components by
    Grams in fp64; their products in fp32, added in the order of the experts.
    """
    shape = tuple(inputs[0].shape)
    treated = {"embeddings": embeddings, "flatten_conv": flatten_conv}
    if not is_treated(treated, shape, place.role):
        return mean(inputs, weights)

    def merge(matrices: list[Tensor]) -> Tensor:
        centre = mean(matrices, [1.0] * len(matrices))
        kept = max(1, int(min(centre.shape) * rank_fraction))
        result = centre.clone()
        for matrix in matrices:
            rest = matrix - centre
            if lambda_ and rest.any():
                result += top_svd(rest, kept, place).product() * lambda_
        return result

    return on_matrices(inputs, weights, merge)
