"""Iso-CTS: the common directions of the sum, the rest shared out among the tasks, all alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.ops._annotations import IsoAlpha, IsoTail
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._spectral import (
    TAIL,
    Embeddings,
    Factors,
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
from mergekit_lite.ops.combine.iso_c import total

if TYPE_CHECKING:
    from torch import Tensor


def shares(rank: int, fraction: float, tasks: int) -> tuple[int, int]:
    """Return how many directions are common, and how many each task adds to them."""
    each = round((rank - int(rank * fraction)) / tasks)
    return rank - each * tasks, each


def directions(
    tasks: Sequence[Tensor], fraction: float, tail: float, place: Place
) -> list[Factors]:
    """Return the tasks' own components and, last, those of the sum."""
    whole = thin_svd(total(tasks), place, tail=tail)
    common, each = shares(whole.sizes.numel(), fraction, len(tasks))
    shared = whole.top(common)
    if each == 0:
        return [shared]
    own = []
    for task in tasks:
        rest = task - shared.left @ (shared.left.T @ task)
        # Below the tail of the task itself nothing is left but the rounding of the difference.
        if float(rest.norm()) > tail * float(task.norm()):
            own.append(thin_svd(rest, place, most=each, tail=tail))
    return [*own, shared]


@combine(
    title="Isotropic merging in common and task-specific spaces",
    paper="Marczak et al. 2025, arXiv 2502.04959",
    reach="tensor",
    commutative=True,
    instead=mean_instead,
    workspace=workspace,
    work=factorising(1, 3),
    vectors=[
        Vector(
            [[[3, 0], [0, 1]], [[0, 0], [0, 4]]],
            [[4, 0], [0, 4]],
            source="no room for the tasks' own directions: as iso_c, by hand",
        ),
        Vector(
            [
                [[6, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]],
                [[0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]],
            ],
            [[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 4]],
            {"common_fraction": 0.5},
            source="two common directions, one of each task, mean of 6, 5, 3, 2, by hand",
        ),
        Vector([[1, 2], [3, -2]], [4, 0], {"alpha": 2.0}, source="not a matrix: alpha times mean"),
    ],
)
def iso_cts(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    weights: Sequence[float],
    alpha: IsoAlpha = 1.0,
    common_fraction: Annotated[
        float,
        Range(above=0, at_most=1),
        Doc("part of the directions taken from the sum; the rest is shared among the tasks"),
    ] = 0.8,
    sv_eps: IsoTail = TAIL,
    embeddings: Embeddings = False,
    flatten_conv: FlattenConv = False,
) -> Tensor:
    """Give equal strength to the common directions of all tasks and to some of each task's own.

    Of r directions of the summed task vectors (each times its weight), the leading r - T q are
    kept, with q = round((r - int(common_fraction r)) / T) for T tasks; each task adds the q leading
    directions of what these leave of it. All are made orthonormal together, and every singular
    value is replaced by the mean. r is the rank of the sum, which for full matrices is the shorter
    side as in the paper, and for adapters what they can fill. With q = 0 this is `iso_c`. Experts
    that leave the tensor alone are no tasks.

    Tensors that are no matrices, and embeddings and head, get alpha times the mean of the weighted
    task vectors.

    Order of operations: as `iso_c` for the sum, as `tsv_merge` for the joining.
    """
    shape = tuple(inputs[0].shape)
    treated = {"embeddings": embeddings, "flatten_conv": flatten_conv}
    if not is_treated(treated, shape, place.role):
        return mean(inputs, weights, alpha)

    def merge(matrices: list[Tensor]) -> Tensor:
        import torch

        if not total(matrices).any():
            return torch.zeros_like(matrices[0])
        parts = directions(nonzero(matrices), common_fraction, sv_eps, place)
        sizes = torch.cat([part.sizes for part in parts])
        return joined(parts, sizes.mean().expand_as(sizes))

    return on_matrices(inputs, weights, merge) * alpha
