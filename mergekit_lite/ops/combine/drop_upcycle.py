"""Drop-Upcycling: draw a part of an expert's neurons anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.ops._random import host_draws, normals
from mergekit_lite.ops._spec import Doc, Range, Vector, combine

if TYPE_CHECKING:
    from torch import Tensor


@combine(
    title="Drop-Upcycling",
    paper="Nakamura et al. 2025, arXiv 2502.19261",
    space="weight",
    experts=(1, 1),
    reach="tensor",
    random=True,
    vectors=[
        Vector([[[5, 5], [5, 5]]], [[5, 5], [5, 5]], {"ratio": 1.0},
               source="equal entries are drawn with no spread, by hand"),
        Vector([[[1, 2]]], [[1, 2]], {"ratio": 0.0}, source="one neuron stays, by hand"),
        Vector([[1, -2]], [1, -2], {"ratio": 0.5}, source="a vector has no neurons, by hand"),
    ],
)  # fmt: skip
def drop_upcycle(
    inputs: Sequence[Tensor],
    *,
    place: Place,
    ratio: Annotated[
        float, Range(at_least=0, at_most=1), Doc("part of the neurons that is drawn anew")
    ] = 0.5,
    neurons: Annotated[
        Literal["rows", "columns"],
        Doc("what a neuron is: a row of the gate and up projections, a column of the down one"),
    ] = "rows",
    draw: Annotated[
        int, Doc("number that the three matrices of an expert share; it decides which neurons")
    ] = 0,
    choice: Annotated[
        Literal["shared", "gate", "up", "down"],
        Doc("`shared`: the same neurons in all three matrices; else each its own, by its name"),
    ] = "shared",
    scale: Annotated[float, Doc("multiplies the result")] = 1.0,
) -> Tensor:
    """Shuffle the neurons of one expert's matrix and draw a part of them anew.

    Copies of a feed-forward layer that differ in this way specialise sooner in training; before it
    the model is worse than the dense one. The shuffle alone changes nothing, as long as all three
    matrices share `draw`.

    Order of operations: neuron i of the result is neuron p(i) of the input; the first
    floor(ratio * n) of another order q are drawn from a normal distribution with the mean and the
    standard deviation (unbiased, fp64) of just these entries, and rounded to fp32. p and q sort the
    neurons by 32-bit draws.
    """
    import torch

    x = inputs[0].float()
    if x.dim() != 2 or x.numel() == 0:
        return x * scale
    rows = x if neurons == "rows" else x.T
    count = rows.shape[0]
    rows = rows[_order(count, random_key(draw, "shuffle", "", ""))].clone()
    chosen = _order(count, random_key(draw, "choose", "", choice))[: int(ratio * count)]
    if chosen.numel():
        part = rows[chosen].double()
        mean = part.mean()
        spread = part.std() if part.numel() > 1 else torch.zeros((), dtype=torch.float64)
        fresh = torch.from_numpy(normals(0, part.numel(), place.key)).to(x.device)
        rows[chosen] = (fresh.reshape(part.shape) * spread.to(x.device) + mean).float()
    return (rows if neurons == "rows" else rows.T).contiguous() * scale


def _order(count: int, key: int) -> Tensor:
    """Return the neurons in a random order."""
    import numpy as np
    import torch

    drawn = host_draws(np.arange(count, dtype=np.int64), key)
    return torch.from_numpy(np.argsort(drawn, kind="stable"))
