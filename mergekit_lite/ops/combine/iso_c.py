"""Iso-C: the sum of all tasks with every singular value the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_lite.ops._annotations import IsoAlpha, IsoTail
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Vector, combine
from mergekit_lite.ops._spectral import (
    TAIL,
    Embeddings,
    FlattenConv,
    factorising,
    is_treated,
    isometry,
    mean,
    mean_instead,
    on_matrices,
    workspace,
)

if TYPE_CHECKING:
    from torch import Tensor


def total(matrices: Sequence[Tensor]) -> Tensor:
    """Return the sum of matrices in the order of the experts."""
    result = matrices[0].clone()
    for matrix in matrices[1:]:
        result += matrix
    return result


@combine(
    title="Isotropic merging in the common space",
    paper="Marczak et al. 2025, arXiv 2502.04959",
    reach="tensor",
    commutative=True,
    instead=mean_instead,
    workspace=workspace,
    work=factorising(0, 1),
    vectors=[
        Vector(
            [[[3, 0], [0, 1]], [[0, 0], [0, 4]]],
            [[4, 0], [0, 4]],
            source="singular values 5 and 3 become 4, by hand",
        ),
        Vector(
            [[[3, 0], [0, 0]], [[1, 0], [0, 0]]],
            [[4, 0], [0, 0]],
            source="rank 1: the null direction gets nothing, by hand",
        ),
        Vector([[1, 2], [3, -2]], [4, 0], {"alpha": 2.0}, source="not a matrix: alpha times mean"),
    ],
)
def iso_c(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    weights: Sequence[float],
    alpha: IsoAlpha = 1.0,
    sv_eps: IsoTail = TAIL,
    embeddings: Embeddings = False,
    flatten_conv: FlattenConv = False,
) -> Tensor:
    """Add the task vectors and give all directions of the sum the same strength.

    The singular values of the sum of the task vectors, each times its weight, are replaced by
    their mean. Only directions that the sum has take part: with adapters of low rank the published
    formula fills all others with noise of full strength.

    Tensors that are no matrices, and embeddings and head, get alpha times the mean (not the sum)
    of the weighted task vectors, as in the authors' code.

    Order of operations: sum in fp32 in the order of the experts; Gram of the shorter side, its
    eigenvectors and their product with the sum in fp64; mean of singular values in fp64; one
    rounding to fp32, then times the mean, then times alpha.
    """
    shape = tuple(inputs[0].shape)
    treated = {"embeddings": embeddings, "flatten_conv": flatten_conv}
    if not is_treated(treated, shape, place.role):
        return mean(inputs, weights, alpha)

    def merge(matrices: list[Tensor]) -> Tensor:
        summed = total(matrices)
        if not summed.any():
            return summed
        flat, sizes = isometry(summed, place, sv_eps)
        return flat * float(sizes.mean())

    return on_matrices(inputs, weights, merge) * alpha
