"""TSV-M: the leading singular vectors of all tasks, made orthogonal to one another."""

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
    joined,
    mean,
    mean_instead,
    nonzero,
    on_matrices,
    thin_svd,
    workspace,
)

if TYPE_CHECKING:
    from torch import Tensor


@combine(
    title="Task singular vectors",
    paper="Gargiulo et al. 2025, arXiv 2412.00081",
    reach="tensor",
    aliases=("tsv_m",),
    commutative=True,
    instead=mean_instead,
    workspace=workspace,
    work=factorising(1, 2),
    vectors=[
        Vector(
            [[[3, 0], [0, 1]], [[0, 0], [0, 4]]],
            [[3, 0], [0, 4]],
            source="the leading component of each, by hand",
        ),
        Vector(
            [[[2, 0], [0, 0]], [[1.8, 2.4], [1.8, 2.4]]],
            [[2.26636, 0.95596], [0.51342, 3.96057]],
            source="independent run: singular values stay 4.24264 and 2",
        ),
        Vector(
            [[[3, 0], [0, 1]], [[0, 0], [0, 0]]],
            [[3, 0], [0, 1]],
            source="an expert that changes nothing is no task, by hand",
        ),
        Vector([[1, 2], [3, -2]], [4, 0], {"alpha": 2.0}, source="not a matrix: alpha times mean"),
    ],
)
def tsv_merge(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    weights: Sequence[float],
    alpha: Annotated[float, Doc("multiplies the merged task vector; the authors try 0 to 3")] = 1.0,
    keep: Annotated[
        float | None,
        Range(above=0, at_most=1),
        Doc("fraction of singular components kept of each task; null is 1 / number of tasks"),
    ] = None,
    embeddings: Embeddings = False,
    flatten_conv: FlattenConv = False,
) -> Tensor:
    """Keep each task's leading singular vectors and make those of all tasks orthogonal.

    Of each of T task vectors, times its weight, the r / T largest singular components are kept
    (r is the shorter side); left and right vectors of all tasks, side by side, are replaced by the
    nearest orthonormal ones; the sum of components, times alpha, is the merged task vector.
    Experts that leave the tensor alone are no tasks. Singular values below 1e-5 of the largest
    count as zero: the authors' code lets their arbitrary vectors turn the others. Directions that
    tasks share exactly are kept once, so copies of one task give its own leading part.

    Tensors that are no matrices, matrices with fewer rows or columns than tasks, and embeddings and
    head get alpha times the mean of the weighted task vectors.

    Order of operations: Grams of the shorter side and their eigenvectors in fp64; polar factors
    U (U^T U)^(-1/2) through eigenvectors in fp64; the product rounded to fp32, then times alpha.
    """
    shape = tuple(inputs[0].shape)
    treated = {"embeddings": embeddings, "flatten_conv": flatten_conv}
    if not is_treated(treated, shape, place.role):
        return mean(inputs, weights, alpha)

    def merge(matrices: list[Tensor]) -> Tensor:
        import torch

        tasks = nonzero(matrices)
        short = min(tasks[0].shape)
        kept = short // len(tasks) if keep is None else int(short * keep)
        if kept == 0:
            return mean(matrices, [1.0] * len(matrices))
        parts = [thin_svd(task, place, most=kept) for task in tasks]
        return joined(parts, torch.cat([part.sizes for part in parts]))

    return on_matrices(inputs, weights, merge) * alpha
