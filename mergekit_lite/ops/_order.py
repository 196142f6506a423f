"""Ranking the entries of rows, and picking exact k-th values, without a sort of whole tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mergekit_lite.ops._place import Cut

if TYPE_CHECKING:
    from torch import Tensor

TILE = 1 << 17
"""Entries that ops on whole tensors work on at a time, so that their scratch stays in the cache."""
_SWEPT = 1 << 20
"""Entries of a piece that is only counted."""
_LOW = 15
"""Bits of a magnitude below those that a histogram tells apart."""


def ascending(rows: Tensor) -> Tensor:
    """Return, for each row, the columns in order of magnitude; ties in order of column.

    Args:
        rows: an fp32 matrix without NaN.
    """
    import torch

    bits = rows.abs().contiguous().view(torch.int32)
    if bits.is_cuda:
        return bits.sort(dim=-1, stable=True).indices
    import numpy as np

    # Magnitude above column: plain integers, which numpy sorts twenty times faster than pairs.
    keys = bits.numpy().astype(np.int64) << 32
    keys |= np.arange(keys.shape[-1])
    keys.sort(axis=-1)
    keys &= 0xFFFFFFFF
    return torch.from_numpy(keys)


def tiles(size: int, most: int = 0) -> Iterable[slice]:
    """Return the pieces of at most so many entries (`TILE`) in which a tensor is worked on."""
    step = most or TILE
    return (slice(first, min(first + step, size)) for first in range(0, size, step))


def kept_in(cut: Cut, values: Tensor, tile: slice) -> Tensor:
    """Return the mask of the entries of a tile that are among the k largest."""
    import torch

    if tile.stop <= cut.until:
        return values >= cut.threshold
    if tile.start >= cut.until:
        return values > cut.threshold
    return cut.keeps(values, torch.arange(tile.start, tile.stop, device=values.device))


def cuts_of(values: Tensor, ranks: Sequence[int]) -> tuple[Cut, ...]:
    """Return where the k largest of `values` end, for each k of `ranks`, as `order_cuts` does.

    A histogram of the upper bits finds the bin of each rank in one sweep; the entries of that bin,
    few of all, are then ranked by themselves.

    Args:
        values: non-negative fp32 entries, flat and contiguous.
        ranks: of 0 to the number of entries.
    """
    import torch

    bits = values.view(torch.int32)
    bins = torch.zeros(1 << 31 - _LOW, dtype=torch.int64)
    for tile in tiles(len(bits), _SWEPT):
        bins += torch.bincount(bits[tile] >> _LOW, minlength=len(bins)).cpu()
    from_top = bins.flip(0).cumsum(0)
    return tuple(_cut(bits, rank, from_top) for rank in ranks)


def _cut(bits: Tensor, rank: int, from_top: Tensor) -> Cut:
    import torch

    if rank <= 0:
        return Cut(math.inf, 0)
    place = int(torch.searchsorted(from_top, torch.tensor(rank)))
    above = int(from_top[place - 1]) if place else 0
    at = torch.cat([t.start + _inside(bits[t], len(from_top) - 1 - place) for t in _sweep(bits)])
    near = bits[at]
    chosen = near.kthvalue(len(near) - (rank - above) + 1).values
    tied = at[near == chosen]
    wanted = rank - above - int((near > chosen).sum())
    return Cut(float(chosen.view(torch.float32)), int(tied[wanted - 1]) + 1)


def _sweep(bits: Tensor) -> Iterable[slice]:
    return tiles(len(bits), _SWEPT)


def _inside(bits: Tensor, digit: int) -> Tensor:
    """Return where the entries of one bin of the histogram are."""
    import torch

    if bits.is_cuda:
        return ((bits >> _LOW) == digit).nonzero().flatten()
    import numpy as np

    found = np.flatnonzero((bits.numpy() >> _LOW) == digit)
    return torch.from_numpy(found)
