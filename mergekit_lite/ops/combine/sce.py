"""Select what varies, calculate weights from it, erase the minority."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._order import cuts_of, kept_in, tiles
from mergekit_lite.ops._place import Cut
from mergekit_lite.ops._spec import Doc, Range, Vector, combine
from mergekit_lite.ops._statistics import add_blocks, block_sums

if TYPE_CHECKING:
    from torch import Tensor

TAUS = [[4, -3, 1, 0.5, 0, -2], [-1, -5, 2, -0.5, 3, 2], [2, 1, -6, 0.25, 0, 1]]


def workspace(params: Mapping[str, Any], shape: Sequence[int], inputs: int) -> int:
    """Bytes of the variance of each entry, whose place the result takes."""
    return 4 * math.prod(shape)


def variance(parts: Sequence[Tensor], count: int) -> Tensor:
    """Return the population variance over the experts, entry by entry."""
    # From the first expert, so that experts which agree vary by exactly nothing.
    apart = [part - parts[0] for part in parts[1:]]
    mean = parts[0].new_zeros(parts[0].shape)
    for part in apart:
        mean += part
    whole = mean.new_full((), count)  # CUDA multiplies by the reciprocal of a Python number
    mean /= whole
    total = mean.square()
    for part in apart:
        total += part.sub_(mean).square_()
    return total.div_(whole)


LEAST = 2.0**-126
"""Stands for a sum of no shares, over which 0 is divided."""


class Selection:
    """Which entries vary enough: of the whole tensor, tile by tile."""

    def __init__(self, flat: Sequence[Tensor], select_topk: float) -> None:
        import torch

        self.flat = flat
        self.size = flat[0].numel()
        self.spread = torch.empty(self.size, device=flat[0].device)
        self.cut: Cut | None = None
        if select_topk >= 1:
            return
        varying = 0
        for tile in tiles(self.size):
            self.spread[tile] = variance([x[tile] for x in flat], len(flat))
            varying += int(torch.count_nonzero(self.spread[tile]))
        if rank := rank_of(select_topk, varying):
            self.cut = cuts_of(self.spread, [rank])[0]

    def mask(self, tile: slice) -> Tensor | None:
        """Return 1 or 0 for each entry of a tile, None where everything is selected."""
        if self.cut is None:
            return None
        return kept_in(self.cut, self.spread[tile], tile).float()

    def tiles(self) -> Iterator[tuple[slice, Tensor | None, list[Tensor]]]:
        """Yield every tile, its mask and the selected part of each expert."""
        for tile in tiles(self.size):
            mask = self.mask(tile)
            parts = [x[tile] for x in self.flat]
            yield tile, mask, parts if mask is None else [x * mask for x in parts]


def rank_of(select_topk: float, varying: int) -> int:
    """Return how many entries are selected of those that vary; 0 stands for all there are."""
    return max(1, int(select_topk * varying)) if varying else 0


def shares_of(squares: Sequence[float]) -> list[float]:
    """Return each expert's share of a total of squares, rounded to fp32."""
    total = math.fsum(squares)
    return [single(one / total) if total else single(1.0 / len(squares)) for one in squares]


def shares(selection: Selection) -> list[float]:
    """Return each expert's share of the squares of what is selected."""
    squares: list[list[float]] = [[] for _ in selection.flat]
    for _, _, parts in selection.tiles():
        for found, part in zip(squares, parts, strict=True):
            found += block_sums(part.double().square_())
    return shares_of([add_blocks(found) for found in squares])


@combine(
    title="SCE: select, calculate, erase",
    paper="Wan et al. 2024, arXiv 2408.07990 (FuseChat)",
    commutative=True,
    idempotent=True,
    reach="tensor",
    workspace=workspace,
    compat={"mergekit": {"select_topk": 1.0}},
    vectors=[
        Vector(
            TAUS,
            [2.77612, -4.07143, -6, 0, 0, 0],
            {"select_topk": 0.5},
            source="independent run: three of six vary most",
        ),
        Vector(
            TAUS,
            [2.77612, -4.07143, -6, 0.34701, 3, 1.42254],
            {"select_topk": 0.5, "merge_masked": False},
            source="the same shares on whole task vectors, by hand",
        ),
        Vector(
            [[3, 1], [1, -2]],
            [7 / 3, -2],
            {"select_topk": 1.0},
            source="shares 10 and 5 of 15; 7/3 over all, -2 alone, by hand",
        ),
        Vector([[1, -2], [1, -2]], [1, -2], source="nothing varies: all agree, by hand"),
    ],
)
def sce(
    inputs: Sequence[Tensor],
    *,
    select_topk: Annotated[
        float, Range(above=0, at_most=1), Doc("fraction kept of the entries that vary at all")
    ] = 0.1,
    merge_masked: Annotated[
        bool, Doc("merge the selected entries only; false: they only decide the shares")
    ] = True,
) -> Tensor:
    """Keep the entries in which the experts differ most, weigh experts by them and elect signs.

    The weight of an expert is its share of the squares of what is selected. Entries in which all
    experts agree do not vary; where none varies, all are kept.

    Order of operations: v = variance over the n experts in fp32: d_i = x_i - x_0, m = (d_1 + d_2 +
    ...) / n, v = (m^2 + (d_1 - m)^2 + ...) / n; the max(1, floor(select_topk * nonzero v)) largest
    are selected, ties by flat index. Shares eta_i = float32(s_i / sum s) of squares in fp64, added
    in blocks of 4096 entries, as all sums over tensors are. s = x_0 + x_1 + ... of what is
    selected, plus where it is 0; num = sum of eta_i * x_i and den = sum of eta_i over those of that
    sign, in order; y = num / den, 0 where den is 0.
    """
    import torch

    flat = [x.float().reshape(-1) for x in inputs]
    if not flat[0].numel():
        return inputs[0].float()
    chosen = Selection(flat, select_topk)
    share = shares(chosen)
    for tile, _, parts in chosen.tiles():
        merged = parts if merge_masked else [x[tile] for x in flat]
        total = merged[0].clone()
        for part in merged[1:]:
            total += part
        sign = torch.ones_like(total).copysign_(total)
        num, den = torch.zeros_like(total), torch.zeros_like(total)
        for weight, part in zip(share, merged, strict=True):
            # The magnitude where the sign agrees, else 0: products are many times faster than
            # choices by a mask.
            agreeing = (part * sign).clamp_(min=0.0)
            num += agreeing * weight
            den += agreeing.sign_().mul_(weight)
        chosen.spread[tile] = num.mul_(sign).div_(den.clamp_(min=LEAST))
    return chosen.spread.reshape(inputs[0].shape)
