"""Trim a task vector to the entries that make up most of its norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mergekit_lite.ops._place import Cut, Place
from mergekit_lite.ops._spec import Doc, Range, Vector, transform
from mergekit_lite.ops._statistics import Order

if TYPE_CHECKING:
    from torch import Tensor


def ranks(params: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """There is a rank to be found unless everything is kept."""
    return (size,) if size and params["share"] < 1 else ()


def shaped(params: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
    """Norm gains and biases are spared, save where the whole model is looked at."""
    spared = params["spare_1d"] and len(shape) < 2 and params["scope"] != "model"
    return {**params, "share": 1.0} if spared else params


@transform(
    title="Pruning of task vectors by share of the norm",
    paper="Yadav et al. 2023, arXiv 2306.01708 (the trim `nf` of the authors' code)",
    needs=Order(ranks, share=lambda params: params["share"], scope="scope", depends=("share",)),
    shaped=shaped,
    vectors=[
        Vector(
            [[[1, -3, 2, 2]]],
            [[0, -3, 0, 0]],
            {"share": 0.5},
            source="9 of 18 are just the half, by hand",
        ),
        Vector(
            [[[1, -4, 2, 2]]],
            [[0, -4, 2, 0]],
            {"share": 0.65},
            source="16 + 4 of 25, as 16 are but 0.64; of two tied entries the first, by hand",
        ),
        Vector(
            [[[1, -4, 2, 2]]],
            [[0, -4, 2, 2]],
            {"share": 0.65, "scope": "model"},
            source="over the whole model all ties are kept, by hand",
        ),
        Vector([[[1, -4, 2, 2]]], [[1, -4, 2, 2]], {"share": 1.0}, source="1 keeps all, by hand"),
        Vector([[1, -4]], [1, -4], {"share": 0.5}, source="a 1-D tensor is spared"),
        Vector([[1, -4]], [0, -4], {"share": 0.5, "spare_1d": False}, source="unless it is not"),
    ],
)
def norm_share(
    delta: Tensor,
    *,
    place: Place,
    cut: tuple[Cut, ...],
    share: Annotated[
        float,
        Range(above=0, at_most=1),
        Doc("part of the sum of squares that what is kept must have"),
        "per_expert",
    ] = 0.9,
    scope: Annotated[
        Literal["tensor", "model"],
        Doc("rank each tensor on its own, or all of the model together (the authors)"),
    ] = "tensor",
    spare_1d: Annotated[
        bool, Doc("leave 1-D tensors, such as norms and biases, as they are, save with `model`")
    ] = True,
) -> Tensor:
    """Keep the fewest entries that make up a share of the squared norm, and zero the others.

    The k largest magnitudes are kept, with the least k whose squares sum to `share` of the sum of
    all squares. Both sums are exact. Over the whole model all entries tied with the k-th are kept.

    Order of operations: y = x where |x| > threshold, or |x| == threshold and index < until; else
    +0.0. With a share of 1, y = x.
    """
    import torch

    delta = delta.float()
    if not cut:
        return delta
    return torch.where(cut[0].keeps(delta.abs(), place.index(delta)), delta, 0.0)
