"""Set the smallest weights of a model to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._annotations import Unit
from mergekit_lite.ops._masks import MOST, group_problems, of_groups, of_rows, of_tensor
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._spec import Doc, Range, Reach, StandIn, Vector, combine
from mergekit_lite.ops._spectral import is_treated

if TYPE_CHECKING:
    from torch import Tensor


def reach_of(params: Mapping[str, Any]) -> Reach:
    """Only a rank among all of a tensor needs all of it."""
    whole = params["unit"] == "tensor" and params.get("n") is None and params["density"] < 1
    return "tensor" if whole else "row"


def passed_on(
    params: Mapping[str, Any], shape: Sequence[int], role: str, inputs: int
) -> StandIn | None:
    """Pass on what is no matrix, or an embedding that is spared."""
    return None if is_treated(params, shape, role) else ("passthrough", {})


def shaped(params: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
    """Keep all of what is no matrix; a tile does not show that, it may be a single row."""
    if is_treated({"embeddings": True}, shape, ""):
        return params
    return {**params, "density": 1.0, "n": None, "m": None}


def workspace(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
    """Return the bytes of magnitudes, of the copy that is ranked, and of masks."""
    return 12 * prod(shape) if reach_of(params) == "tensor" else 0


W = [[4, -3, 1, 0.5], [0.2, -2, 2, 2]]


@combine(
    title="Sparse weights by magnitude",
    paper="Han et al. 2015, arXiv 1506.02626; N:M: Mishra et al. 2021, arXiv 2104.08378",
    space="weight",
    experts=(1, 1),
    reach="tensor",
    reach_of=reach_of,
    instead=passed_on,
    shaped=shaped,
    workspace=workspace,
    check=group_problems,
    vectors=[
        Vector([W], [[4, -3, 0, 0], [0, -2, 2, 0]], {"density": 0.5}, source="four of 8; of equal"),
        Vector(
            [W],
            [[4, -3, 0, 0], [0, -2, 2, 0]],
            {"density": 0.6, "unit": "row"},
            source="two of each row of 4, the first of equal ones, by hand",
        ),
        Vector([W], [[4, -3, 0, 0], [0, -2, 2, 0]], {"n": 2, "m": 4}, source="2:4, by hand"),
        Vector(
            [[[1, -5, 2, 3, 7], [0, 0, 0, 1, -1]]],
            [[0, -5, 0, 3, 7], [0, 0, 0, 1, -1]],
            {"n": 2, "m": 4},
            source="a fifth entry is a group by itself, by hand",
        ),
        Vector([[1, -2, 3]], [1, -2, 3], source="no matrix: as it is"),
        Vector(
            [[[1, -2], [3, 0]]], [[0, 0], [3, 0]], {"density": 0.01}, source="one is kept, by hand"
        ),
    ],
)
def sparsify(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    density: Annotated[
        float, Range(above=0, at_most=1), Doc("fraction of weights kept; not used with `n`, `m`")
    ] = 0.5,
    unit: Unit = "tensor",
    n: Annotated[
        int | None, Range(at_least=1, at_most=MOST), Doc("entries of a group that are kept")
    ] = None,
    m: Annotated[
        int | None, Range(at_least=2, at_most=MOST), Doc("neighbours in a row that make a group")
    ] = None,
    embeddings: Annotated[
        bool, Doc("make embeddings and the head sparse too; else they stay as they are")
    ] = False,
) -> Tensor:
    """Keep the largest weights of one model and set all others to zero.

    Of n weights of a tensor, or of each of its rows, the max(1, floor(density * n)) largest by
    magnitude are kept, of equal ones the first by index. With `n` and `m` the `n` largest of every
    `m` neighbours along the input dimension are: 2:4 is what sparse tensor cores multiply with.
    What is left at a row's end is a group of its own, of which `n` are kept, or all.

    To make a merge sparse, merge in a stage and give the stage to this step. For task vectors there
    are `magnitude` and `n_of_m`. `inspect --density` counts what has become zero.

    Tensors that are no matrices, and embeddings and head, are left as they are.

    Order of operations: y = x where its rank is small enough, else +0.0.
    """
    import torch

    x = inputs[0].float()
    if place.role in ("embedding", "head") and not embeddings:
        return x
    size = x.numel() if unit == "tensor" or not x.dim() else x.shape[-1]
    keep = max(1, int(density * size))
    if n is not None and m is not None:
        mask = of_groups(x.abs(), n, m)
    elif keep >= size:
        return x
    else:
        mask = of_tensor(x.abs(), keep) if unit == "tensor" else of_rows(x.abs(), keep)
    return torch.where(mask, x, 0.0)
