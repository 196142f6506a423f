"""Drop random entries of a task vector, small ones more often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_lite.ops._annotations import ChanceRescale, ChanceSpread, MeanChance
from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._order import ascending
from mergekit_lite.ops._place import Place, Sums
from mergekit_lite.ops._random import draws
from mergekit_lite.ops._rows import as_rows
from mergekit_lite.ops._spec import Vector, transform
from mergekit_lite.ops._statistics import Totals

if TYPE_CHECKING:
    from torch import Tensor


def check(params: Mapping[str, Any]) -> list[str]:
    """Every entry must have a chance to be kept, and one to be dropped."""
    density, epsilon = params["density"], params["epsilon"]
    if density >= 1 or (density - epsilon > 0 and density + epsilon < 1):
        return []
    chances = f"{density - epsilon:g} to {density + epsilon:g}"
    return [f"`density` -+ `epsilon` gives chances of {chances}; they must be inside 0 to 1"]


def chances(rows: Tensor, density: float, epsilon: float) -> Tensor:
    """Return the fp32 probability of each entry to be kept, by its rank in its row."""
    import torch

    width = rows.shape[-1]
    if width < 2:
        return torch.full_like(rows, density)
    rank = torch.arange(width, dtype=torch.float64, device=rows.device)
    # A tensor as divisor: a plain number would be turned into a reciprocal on CUDA.
    steps = rank.new_full((), width - 1)
    by_rank = ((density - epsilon) + 2.0 * epsilon * rank / steps).float()
    order = ascending(rows)
    return torch.empty_like(rows).scatter_(-1, order, by_rank.expand(rows.shape))


def kept_entries(delta: Tensor, place: Place, chance: Tensor) -> Tensor:
    """Return the mask of the entries that are kept."""
    index = place.index(as_rows(delta))
    return draws(index, place.key) < chance.double() * 2.0**32


def whole_and_kept(
    values: Sequence[Tensor], place: Place, params: Mapping[str, Any]
) -> list[Tensor]:
    """The `l1` factor compares the magnitudes of the delta with those that survive."""
    rows = as_rows(values[0].float())
    mask = kept_entries(rows, place, chances(rows, params["density"], params["epsilon"]))
    return [rows, rows.where(mask, rows.new_zeros(()))]


@transform(
    title="MAGPRUNE: drop by rank and rescale",
    paper="Deep et al. 2024, arXiv 2406.11617 (the drop of DELLA-Merging)",
    reach="row",
    random=True,
    unbiased=True,
    check=check,
    needs=Totals(
        absolute=True,
        wanted=lambda params: params["rescale"] == "l1" and params["density"] < 1,
        inputs=whole_and_kept,
    ),
    compat={"mergekit": {"density": 1.0, "epsilon": 0.15, "rescale": "l1"}},
    vectors=[
        Vector([[4, -3, 1]], [4, -3, 1], {"density": 1.0}, source="density 1 keeps all, by hand"),
        Vector([[0, 0]], [0, 0], {"density": 0.5}, source="zero stays zero, by hand"),
        Vector([[0, 0]], [0, 0], {"density": 0.5, "rescale": "l1"}, source="nor by l1, by hand"),
        Vector([[0, 0]], [0, 0], {"density": 0.5, "rescale": "none"}, source="nor not, by hand"),
    ],
)
def magprune(
    delta: Tensor,
    *,
    place: Place,
    sums: Sums | None,
    density: MeanChance = 0.7,
    epsilon: ChanceSpread = 0.07,
    rescale: ChanceRescale = "inv_prob",
) -> Tensor:
    """Drop each entry at random, the small ones of each row more often than the large ones.

    An entry of rank r among the n of its row, from the smallest, is kept with the chance density -
    epsilon + 2 * epsilon * r / (n - 1). With `rescale: inv_prob` the result equals the input on
    average. A row is the last dimension; a 1-D tensor is one row, and rows of one entry have the
    chance `density`. The authors' window is 2 * epsilon.

    Order of operations: p = the chance in fp64, rounded to fp32; ties are ranked by index; an entry
    is kept where its draw is below p * 2^32. y = x / p; `l1`: y = x * f with f = float32(sum|x| /
    sum|kept x|) in fp64, 0 for a zero divisor; else +0.0. With density 1, y = x.
    """
    import torch

    delta = delta.float()
    if density >= 1 or delta.numel() == 0:
        return delta
    rows = as_rows(delta)
    chance = chances(rows, density, epsilon)
    mask = kept_entries(rows, place, chance)
    if rescale == "inv_prob":
        scaled = rows / chance
    else:
        before, after = sums.absolute if sums else (1.0, 1.0)
        scaled = rows * (single(before / after) if after else 0.0)
    return torch.where(mask, scaled, 0.0).reshape(delta.shape)
