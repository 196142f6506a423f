"""Trim a task vector to its largest entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._annotations import Density, Density1d
from mergekit_lite.ops._place import Cut, Place
from mergekit_lite.ops._spec import Doc, Range, Vector, transform
from mergekit_lite.ops._statistics import Order

if TYPE_CHECKING:
    from torch import Tensor


def ranks(params: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """k = max(1, floor(density * size)), or `count`; nothing to rank when everything is kept."""
    if params.get("count") is not None:
        return (int(params["count"]),) if params["count"] < size else ()
    density = params["density"]
    if density >= 1:
        return ()
    # The authors test for the next one too, and so keep one more.
    more = params.get("tie_mode") == "official"
    return (max(1, int(density * size)) + more,)


def shaped(params: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
    """Norm gains and biases have a density of their own, save in a ranking of the whole model."""
    spared = params.get("density_1d")
    if spared is None or len(shape) > 1 or params.get("scope") == "model":
        return params
    return {**params, "density": spared, "count": None}


TAU_2 = [[-1, -5], [2, -0.5], [3, 2]]


@transform(
    title="Magnitude pruning of task vectors",
    paper="Yadav et al. 2023, arXiv 2306.01708 (the trim of TIES-Merging)",
    needs=Order(ranks, ties="tie_mode", scope="scope", depends=("density", "count", "tie_mode")),
    shaped=shaped,
    compat={"mergekit": {"density": 1.0, "density_1d": None}},
    vectors=[
        Vector(
            [TAU_2],
            [[0, -5], [2, 0], [3, 0]],
            {"density": 0.5},
            source="exact k: of two tied entries the first is kept, by hand",
        ),
        Vector(
            [TAU_2],
            [[0, -5], [2, 0], [3, 2]],
            {"density": 0.5, "tie_mode": "threshold"},
            source="threshold: both tied entries are kept, by hand",
        ),
        Vector(
            [TAU_2],
            [[0, -5], [2, 0], [3, 2]],
            {"density": 0.5, "tie_mode": "official"},
            source="run of the authors' code, which keeps k + 1",
        ),
        Vector([[[1, -2, 3]]], [[0, 0, 3]], {"density": 0.01}, source="k is at least 1, by hand"),
        Vector([[[1, -2, 3]]], [[0, -2, 3]], {"count": 2}, source="k is given, by hand"),
        Vector([[1, -2, 3]], [1, -2, 3], {"density": 0.4}, source="a 1-D tensor is spared"),
        Vector(
            [[1, -2, 3]], [0, 0, 3], {"density": 0.4, "density_1d": None}, source="unless it is not"
        ),
    ],
)
def magnitude(
    delta: Tensor,
    *,
    place: Place,
    cut: tuple[Cut, ...],
    density: Density = 0.2,
    density_1d: Density1d = 1.0,
    scope: Annotated[
        Literal["tensor", "model"],
        Doc("rank each tensor on its own, or all of the model together (then also 1-D ones)"),
    ] = "tensor",
    tie_mode: Annotated[
        Literal["exact", "threshold", "official"],
        Doc(
            "keep exactly k entries, first ones of a tie first, or all tied with the k-th;"
            " `official`: all tied with the (k+1)-th, as the authors' code"
        ),
    ] = "exact",
    count: Annotated[
        int | None, Range(at_least=1), Doc("k itself, in place of `density`"), "per_expert"
    ] = None,
) -> Tensor:
    """Keep the entries of largest magnitude and set all others to zero.

    Of n entries the max(1, floor(density * n)) largest are kept, or `count`. With `scope: model`
    the entries of all float tensors are ranked together, as the paper does, and ties are all kept.

    Order of operations: y = x where |x| > threshold, or |x| == threshold and index < until;
    else +0.0. With density 1 there is no cut and y = x.
    """
    import torch

    delta = delta.float()
    if not cut:
        return delta
    return torch.where(cut[0].keeps(delta.abs(), place.index(delta)), delta, 0.0)
