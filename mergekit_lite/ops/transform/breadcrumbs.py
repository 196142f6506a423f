"""Remove both the outliers and the small entries of a task vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergekit_lite.ops._annotations import Density, Gamma, Unit
from mergekit_lite.ops._place import Cut, Place
from mergekit_lite.ops._spec import Vector, transform
from mergekit_lite.ops._statistics import Order

if TYPE_CHECKING:
    from torch import Tensor


def band(density: float, gamma: float, size: int) -> tuple[int, int]:
    """Return (top, last): of `size` entries those with magnitude ranks top+1..last are kept.

    At least one is kept; where both ends do not fit, fewer outliers are removed.
    """
    keep = min(size, max(1, int(density * size)))
    top = min(int(gamma * size), size - keep)
    return top, top + keep


def ranks(params: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """A whole tensor is ranked by the engine; rows are ranked by the op itself."""
    if params["unit"] == "row" or params["density"] >= 1:
        return ()
    return band(params["density"], params["gamma"], size)


def row_mask(magnitude: Tensor, density: float, gamma: float) -> Tensor:
    """Return the mask of kept entries, ranking each row; ties go by index."""
    import torch

    top, last = band(density, gamma, magnitude.shape[-1])
    order = magnitude.sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros_like(magnitude, dtype=torch.bool)
    return mask.scatter(-1, order[..., top:last], True)


TENS = [[float(i * 10 + j) for j in range(1, 11)] for i in range(10)]  # 1..100


@transform(
    title="Model Breadcrumbs",
    paper="Davari and Belilovsky 2024, arXiv 2312.06795",
    reach="row",
    reach_of=lambda params: "row" if params["unit"] == "row" else "element",
    needs=Order(ranks),
    compat={"mergekit": {"density": 1.0, "unit": "tensor"}},
    vectors=[
        Vector(
            [TENS],
            [[v if 90 <= v <= 99 else 0 for v in row] for row in TENS],
            {"density": 0.1, "gamma": 0.01, "unit": "tensor"},
            source="independent run: 1..100 keeps 90..99",
        ),
        Vector(
            [TENS],
            [[v if v > 90 else 0 for v in row] for row in TENS],
            {"density": 0.1, "gamma": 0.0, "unit": "tensor"},
            source="independent run: gamma 0 keeps 91..100",
        ),
        Vector(
            [[[4, -3, 1, 0.5, 0, -2], [1, 1, 1, 1, 1, 1]]],
            [[0, -3, 0, 0, 0, -2], [0, 1, 1, 0, 0, 0]],
            {"density": 0.34, "gamma": 0.17},
            source="rows: of 6 entries rank 1 is removed and 2..3 are kept, by hand",
        ),
    ],
)
def breadcrumbs(
    delta: Tensor,
    *,
    place: Place,
    cut: tuple[Cut, ...],
    density: Density = 0.15,
    gamma: Gamma = 0.01,
    unit: Unit = "row",
) -> Tensor:
    """Remove the largest entries, keep the band below them and set the rest to zero.

    Of a unit of n entries those with magnitude ranks n_top+1 .. n_top+keep are kept, where n_top =
    floor(gamma * n) and keep = max(1, floor(density * n)); n_top shrinks where both do not fit.
    A row is the last dimension; a 1-D tensor is one row.

    Order of operations: y = x where the entry is among the n_top+keep largest and not among the
    n_top largest (ties by flat index), else +0.0. With density 1, y = x.
    """
    import torch

    delta = delta.float()
    if density >= 1 or delta.numel() == 0:
        return delta
    magnitude = delta.abs()
    if unit == "row":
        rows = magnitude.reshape(-1, delta.shape[-1] if delta.dim() else 1)
        mask = row_mask(rows, density, gamma).reshape(delta.shape)
    else:
        index = place.index(delta)
        mask = cut[1].keeps(magnitude, index) & ~cut[0].keeps(magnitude, index)
    return torch.where(mask, delta, 0.0)
