"""Keep the few largest entries of a task vector, over the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergekit_lite.ops._annotations import Density, ModelScope
from mergekit_lite.ops._place import Cut
from mergekit_lite.ops._spec import Vector, transform
from mergekit_lite.ops._statistics import Order

if TYPE_CHECKING:
    from torch import Tensor


def ranks(params: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """The first entry that is not kept; none where all are."""
    keep = max(1, int(params["density"] * size))
    return (keep + 1,) if keep < size else ()


@transform(
    title="Grafting: skill localisation by magnitude",
    paper="Panigrahi et al. 2023, arXiv 2302.06600",
    needs=Order(ranks, scope="scope", depends=("density",)),
    vectors=[
        Vector(
            [[4, -3, 1, 0.5, 0, -2]],
            [4, -3, 0, 0, 0, 0],
            {"density": 0.34},
            source="2 of 6 entries lie above the third largest, by hand",
        ),
        Vector(
            [[-1, -5, 2, -0.5, 3, 2]],
            [0, -5, 0, 0, 3, 0],
            {"density": 0.5},
            source="third and fourth are tied, so neither is kept, by hand",
        ),
        Vector([[1, -2]], [1, -2], {"density": 1.0}, source="density 1 keeps all, by hand"),
        Vector(
            [[1, -2, 3]], [0, 0, 3], {"density": 0.01, "scope": "tensor"}, source="k is at least 1"
        ),
    ],
)
def graft(
    delta: Tensor,
    *,
    cut: tuple[Cut, ...],
    density: Density = 0.01,
    scope: ModelScope = "model",
) -> Tensor:
    """Keep the largest entries of all tensors together and set the rest to zero.

    About one entry in a hundred carries most of what an expert has learnt. Of n entries those
    larger in magnitude than the (k+1)-th are kept, k = max(1, floor(density * n)): never more than
    k, and fewer where magnitudes tie. For one expert and `task_arithmetic` this grafts its skill
    onto the base; `localize_and_stitch` does so for several.

    Order of operations: y = x where |x| > threshold, else +0.0. With density 1, y = x.
    """
    import torch

    delta = delta.float()
    if not cut:
        return delta
    return torch.where(delta.abs() > cut[0].threshold, delta, 0.0)
