"""Trim a task vector to the largest of every few neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._masks import MOST, group_problems, of_groups
from mergekit_lite.ops._spec import Doc, Range, Vector, transform

if TYPE_CHECKING:
    from torch import Tensor


def shaped(params: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
    """Keep all of norms and biases; a tile does not show what it is of, it may be a single row."""
    return params if len(shape) > 1 else {**params, "n": params["m"]}


@transform(
    title="N:M magnitude pruning of task vectors",
    paper="Mishra et al. 2021, arXiv 2104.08378; Zhou et al. 2021, arXiv 2102.04010",
    reach="row",
    check=group_problems,
    shaped=shaped,
    vectors=[
        Vector(
            [[[4, -3, 1, 0.5], [0.2, -2, 2, 2]]],
            [[4, -3, 0, 0], [0, -2, 2, 0]],
            source="2:4, of equal entries the first, by hand",
        ),
        Vector(
            [[[1, -5, 2, 3, 7]]], [[0, -5, 0, 0, 7]], {"n": 1, "m": 4},
            source="a fifth entry is a group by itself, by hand",
        ),
        Vector([[1, -2, 3, 4]], [1, -2, 3, 4], source="a 1-D tensor is spared"),
    ],
)  # fmt: skip
def n_of_m(
    delta: Tensor,
    *,
    n: Annotated[int, Range(at_least=1, at_most=MOST), Doc("entries of a group that are kept")] = 2,
    m: Annotated[
        int, Range(at_least=2, at_most=MOST), Doc("neighbours in a row that make a group")
    ] = 4,
) -> Tensor:
    """Keep the `n` largest of every `m` neighbours in a row and set the others to zero.

    Neighbours lie along the last dimension, which is the input of a projection. What is left at a
    row's end is a group of its own, of which `n` are kept, or all. Norms and biases are spared.

    Order of operations: y = x where fewer than `n` of its group are larger, or as large and before
    it, else +0.0.
    """
    import torch

    delta = delta.float()
    return delta if n == m else torch.where(of_groups(delta.abs(), n, m), delta, 0.0)
