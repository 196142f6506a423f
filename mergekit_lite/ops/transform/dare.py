"""Drop random entries of a task vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_lite.ops._annotations import Chance, Rescale
from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._place import Place, Sums
from mergekit_lite.ops._random import kept
from mergekit_lite.ops._spec import Vector, transform
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor


def whole_and_kept(
    values: Sequence[Tensor], place: Place, params: Mapping[str, Any]
) -> list[Tensor]:
    """The `l1` factor compares the magnitudes of the delta with those that survive."""
    delta = values[0].float()
    return [delta, delta.where(kept(delta, place, params["density"]), delta.new_zeros(()))]


def rescale_factor(density: float, rescale: str, sums: Sums | None) -> float:
    """Return the fp32 number that kept entries are multiplied by."""
    if density >= 1 or rescale == "none":
        return 1.0
    if rescale == "inv_density":
        return single(1.0 / density)
    before, after = sums.absolute if sums else (0.0, 0.0)
    return single(before / after) if after else 0.0


@transform(
    title="DARE: drop and rescale",
    paper="Yu et al. 2024, arXiv 2311.03099",
    random=True,
    unbiased=True,
    needs=Totals(
        absolute=True,
        wanted=lambda params: params["rescale"] == "l1" and params["density"] < 1,
        inputs=whole_and_kept,
    ),
    compat={"mergekit": {"density": 1.0, "rescale": "l1"}},
    vectors=[
        Vector([[4, -3, 1]], [4, -3, 1], {"density": 1.0}, source="density 1 keeps all, by hand"),
        Vector([[0, 0]], [0, 0], {"density": 0.1}, source="zero stays zero, by hand"),
        Vector(
            [[0, 0]],
            [0, 0],
            {"density": 0.1, "rescale": "l1"},
            source="no division by a zero norm, by hand",
        ),
    ],
)
def dare(
    delta: Tensor,
    *,
    place: Place,
    sums: Sums | None,
    density: Chance = 0.5,
    rescale: Rescale = "inv_density",
) -> Tensor:
    """Drop each entry with probability 1 - density and scale up what is left.

    With `rescale: inv_density` the result equals the input on average. Below a density of about
    0.1 merges are reported to collapse when entries are large (above 0.03).

    Order of operations: f = float32(1/density), or float32(sum|x| / sum|kept x|) in fp64 with 0
    for a zero divisor, or 1; y = x * f where the draw is below round(density * 2^32), else +0.0.
    """
    import torch

    delta = delta.float()
    scaled = delta * rescale_factor(density, rescale, sums)
    return torch.where(kept(delta, place, density), scaled, 0.0)
