"""SVC: weaken directions that several tasks have added up in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, Range, StandIn, Vector, post
from mergekit_lite.ops._spectral import (
    Embeddings,
    FlattenConv,
    factorising,
    is_treated,
    left_vectors,
    nonzero,
    on_matrices,
    workspace,
)

if TYPE_CHECKING:
    from torch import Tensor

_SILENT = 1e-6
"""A task whose part along a direction is smaller than this part of it says nothing there."""


def nothing_instead(
    params: Mapping[str, Any], shape: Sequence[int], role: str, inputs: int
) -> StandIn | None:
    """Leave the merged task vector as it is where it has no singular values."""
    return None if is_treated(params, shape, role) else ("", {})


def factors_of(
    merged: Tensor, left: Tensor, tasks: Sequence[Tensor], alpha: float | None
) -> Tensor:
    """Return the factor of each direction: the number of tasks over the sum of their votes."""
    import torch

    along = left.T @ merged
    least = 1.0 / len(tasks) if alpha is None else alpha
    votes = torch.zeros(left.shape[1], dtype=torch.float64, device=left.device)
    for task in tasks:
        own = left.T @ task
        size = own.double().square().sum(1)
        vote = (along.double() * own).sum(1) / size
        silent = size <= (_SILENT * float(task.double().norm())) ** 2
        votes += vote.masked_fill(silent, 1.0).clamp(min=least)
    return len(tasks) / votes


@post(
    title="Singular value calibration",
    paper="Spectral over-accumulation in model merging, arXiv 2602.05536",
    reach="tensor",
    aliases=("spectral_calibrate",),
    instead=nothing_instead,
    workspace=workspace,
    work=factorising(1, 1),
    vectors=[
        Vector(
            [[[2, 1], [0, 3]], [[2, 1], [0, 3]], [[2, 1], [0, 3]]],
            [[2, 1], [0, 3]],
            source="three equal tasks added up give one of them back, by hand",
        ),
        Vector(
            [[[3, 0], [0, 0]], [[0, 0], [0, 4]]],
            [[3, 0], [0, 4]],
            source="tasks that share nothing stay as they are, by hand",
        ),
        Vector(
            [[[3, 0], [0, 2]], [[1, 0], [0, 2]]],
            [[1.5, 0], [0, 2]],
            {"alpha": 0.1},
            source="votes 4/3 and 4, 2 and 2: factors 3/8 and 1/2, by hand",
        ),
        Vector(
            [[[3, 0], [0, 2]], [[-1, 0], [0, 2]]],
            [[2, 0], [0, 2]],
            {"alpha": 1.0},
            source="votes 2/3 and -2, raised to alpha 1: factor 1, by hand",
        ),
        Vector([[1, 2], [3, -2]], [4, 0], source="not a matrix: left as it is"),
    ],
)
def svc(
    merged: Tensor,
    *,
    place: Place,
    deltas: Sequence[Tensor],
    alpha: Annotated[
        float | None,
        Range(above=0),
        Doc("least vote of a task: 1 lets directions only shrink; null is 1 / number of tasks"),
    ] = None,
    embeddings: Embeddings = False,
    flatten_conv: FlattenConv = False,
) -> Tensor:
    """Scale each singular direction of the merged task vector by how much the tasks agree on it.

    For every left singular vector u of the merged task vector M, each task vector t votes
    s = <u^T M, u^T t> / |u^T t|^2: above 1 where the merge has more of that direction than the
    task. The direction is multiplied by K / sum of max(alpha, s) over K tasks. A task with nothing
    along u votes 1, and experts that leave the tensor alone are no tasks. The tasks are the
    experts' deltas as they were before any transform or weight.

    Put it after any combine. The authors take alpha 0.1 after task arithmetic, TIES, DARE and
    Iso-C, 0.2 after Iso-CTS, 1 after TSV-M. Where singular values are equal, as after Iso-C, the
    directions are not unique, and neither is the result.

    Tensors that are no matrices, and embeddings and head, are left as they are.

    Order of operations: left vectors by eigenvectors of a Gram matrix in fp64; products in fp32,
    votes in fp64; then M + U diag(factor - 1) U^T M.
    """
    treated = {"embeddings": embeddings, "flatten_conv": flatten_conv}
    if not is_treated(treated, merged.shape, place.role):
        return merged.float()

    def calibrate(matrices: list[Tensor]) -> Tensor:
        whole, tasks = matrices[0], nonzero(matrices[1:])
        if not whole.any() or not tasks:
            return whole
        left = left_vectors(whole, place)
        change = factors_of(whole, left, tasks, alpha).float() - 1.0
        return whole + (left * change) @ (left.T @ whole)

    return on_matrices([merged, *deltas], [1.0] * (1 + len(deltas)), calibrate)
