"""ACE-Merging: a regression on input covariances that are estimated from the task vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean, variance
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._least_squares import solve_right
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._spectral import (
    Embeddings,
    FlattenConv,
    gram,
    is_treated,
    matrix_shape,
    mean,
    mean_instead,
    mirrored,
    nonzero,
    on_matrices,
    top_svd,
)

if TYPE_CHECKING:
    from torch import Tensor


def workspace(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
    """Return the bytes of the covariance, its factor, and of matrices in fp64."""
    size = matrix_shape(shape, bool(params.get("flatten_conv")))
    if size is None:
        return 0
    rows, columns = size
    return 56 * columns * columns + 56 * rows * columns + 4 * inputs * rows * columns


def work(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> float:
    """Return the operations of the covariances and of the solution."""
    size = matrix_shape(shape, bool(params.get("flatten_conv")))
    if size is None:
        return 0.0
    rows, columns = size
    return float(columns) ** 3 + (1.0 + inputs) * 2.0 * rows * columns * (columns + rows)


def spread(tasks: Sequence[Tensor]) -> float:
    """Return how unlike the tasks are in size: the relative variance of the log of their energy."""
    if len(tasks) < 2:
        return 0.0
    energies = [log(float(task.double().square().sum())) for task in tasks]
    middle = fmean(energies)
    return variance(energies) / (middle * middle) if middle else float("inf")


@dataclass(frozen=True)
class Estimate:
    """What is estimated of all tasks together.

    Attributes:
        covariance: sum of the tasks' covariances of inputs, fp64, columns x columns.
        numerator: sum of each task times its damped covariance, fp64.
        own: the same without damping.
        total: sum of the centred tasks, fp64.
        damping: what is added to the diagonal of `covariance`.
    """

    covariance: Tensor
    numerator: Tensor
    own: Tensor
    total: Tensor
    damping: float


def estimated(tasks: Sequence[Tensor], eps: float, unlike: bool) -> Estimate:
    """Estimate the tasks' covariances from their rows; of unlike tasks each has trace 1."""
    import torch

    columns = tasks[0].shape[1]
    like: dict[str, Any] = {"dtype": torch.float64, "device": tasks[0].device}
    covariance = torch.zeros(columns, columns, **like)
    own, damped, total = (torch.zeros(tasks[0].shape, **like) for _ in range(3))
    damping = 0.0
    for task in tasks:
        centred = task - task.double().mean(0).float()
        trace = float(centred.double().square().sum())
        scale = trace if unlike and trace else 1.0
        gram(centred.T, covariance, 1.0 / scale)
        own += mirrored(gram(centred)) @ centred.double() / scale
        damped += centred.double() * (eps / scale)
        total += centred
        damping += eps / scale
    return Estimate(covariance, own + damped, own, total, damping)


def solved(found: Estimate, shared: float) -> Tensor:
    """Return numerator @ inverse(covariance + damping + 1 shared (1/columns) 1^T covariance).

    The last, of rank one, is what all tasks' covariances have in common; it is taken out of the
    inverse by the formula of Sherman and Morrison.
    """
    import torch

    whole = mirrored(found.covariance)
    common = whole.mean(0) * shared
    ones = torch.ones_like(common)
    right = solve_right(torch.cat([found.numerator, common[None]]), whole, found.damping)
    first, row = right[:-1], right[-1]
    return first - torch.outer(first @ ones, row) / (1 + row @ ones)


@combine(
    title="ACE-Merging",
    paper="Xu et al. 2026, arXiv 2603.02945",
    reach="tensor",
    aliases=("gram_free_regmean",),
    commutative=True,
    instead=mean_instead,
    workspace=workspace,
    work=work,
    vectors=[
        Vector(
            [[[2, 0], [0, 0]]],
            [[0.666669, 0], [-0.666669, 0]],
            source="one task, centred to 1 and -1; covariance 2 over 2 + 1, by hand",
        ),
        Vector(
            [[[2, 0], [-2, 0]], [[0, 1], [0, -1]]],
            [[1.25, 0.25], [-1.25, -0.25]],
            {"gamma": 100.0},
            source="covariances 8 and 2: [16, 2] times the inverse of [[12, 1], [4, 3]], by hand",
        ),
        Vector(
            [[[2, 0], [-2, 0]], [[0, 1], [0, -1]]],
            [[4.5, 2.0], [-4.5, -2.0]],
            {"gamma": 0.0, "k_frac": 0.5},
            tolerance=1e-4,
            source="independent run: unlike tasks, one direction refined",
        ),
        Vector([[1, 2], [3, -2]], [2, 0], source="not a matrix: the mean"),
    ],
)
def ace(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    weights: Sequence[float],
    eps: Annotated[
        float,
        Range(above=0),
        Doc("added to the diagonal of each covariance, absolute; the authors take up to 0.04"),
    ] = 1e-5,
    gamma: Annotated[
        float, Range(at_least=0), Doc("above this spread of sizes, tasks count as unlike")
    ] = 0.3,
    k_frac: Annotated[
        float,
        Range(at_least=0, at_most=1),
        Doc("unlike tasks: part of the singular directions that is added evenly"),
    ] = 0.3,
    embeddings: Embeddings = False,
    flatten_conv: FlattenConv = False,
) -> Tensor:
    """Weigh each task's matrix by the covariance of its inputs, as its own rows show it.

    Each task vector t, times its weight and with the mean of its rows taken off, gives the estimate
    C = t^T t. The result is (sum t (C + eps)) times the inverse of (sum (C + eps) + A), where every
    row of A is the mean row of sum C. Where the logarithms of the tasks' squared norms vary by more
    than `gamma` (variance over squared mean), every C is divided by its trace, A by the mean
    squared norm, and the leading directions of the result plus sum t (C - mean C) are added, all
    with their mean singular value. Experts that leave the tensor alone are no tasks.

    `eps` and the measure of unlikeness are absolute, as published: they depend on how large the
    task vectors are.

    Tensors that are no matrices, and embeddings and head, get the mean of the weighted task
    vectors.

    Order of operations: covariances and products in fp64; one Cholesky factorisation; the part of
    rank one by the formula of Sherman and Morrison; one rounding to fp32.
    """
    shape = tuple(inputs[0].shape)
    treated = {"embeddings": embeddings, "flatten_conv": flatten_conv}
    if not is_treated(treated, shape, place.role):
        return mean(inputs, weights)

    def merge(matrices: list[Tensor]) -> Tensor:
        tasks = nonzero(matrices)
        unlike = spread(tasks) > gamma
        found = estimated(tasks, eps, unlike)
        energy = fmean(float(task.double().square().sum()) for task in tasks)
        result = solved(found, 1.0 / energy if unlike else 1.0)
        kept = int(min(result.shape) * k_frac)
        if not unlike or not kept:
            return result.float()
        middle = mirrored(found.covariance) / len(tasks)
        middle.diagonal().add_(found.damping / len(tasks))
        fused = (found.own - found.total @ middle + result).float()
        if not fused.any():
            return result.float()
        top = top_svd(fused, kept, place)
        return result.float() + float(top.sizes.mean()) * (top.left @ top.right.T)

    return on_matrices(inputs, weights, merge)
