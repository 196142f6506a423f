"""Ranking the entries of rows, and picking exact k-th values, without a sort of whole tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mergekit_lite.ops._place import Cut
from mergekit_lite.ops._statistics import order_cuts

if TYPE_CHECKING:
    from torch import Tensor

TILE = 1 << 18
"""Entries that ops on whole tensors work on at a time, so that their scratch stays in the cache."""
_SAMPLE = 1 << 16
_MARGIN = 6
"""How many standard deviations of a sampled rank a bracket reaches to either side."""


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


def tiles(size: int) -> Iterable[slice]:
    """Return the pieces in which a tensor of so many entries is worked on."""
    return (slice(first, min(first + TILE, size)) for first in range(0, size, TILE))


def cuts_of(values: Tensor, ranks: Sequence[int]) -> tuple[Cut, ...]:
    """Return where the k largest of `values` end, for each k of `ranks`, as `order_cuts` does.

    A sample brackets each rank, one sweep counts what lies above the bracket and collects what
    lies inside; where the sample misled, the histogram-free sort of `order_cuts` answers.

    Args:
        values: non-negative fp32 entries, flat.
        ranks: of 0 to the number of entries.
    """
    size = values.numel()
    if size <= 4 * _SAMPLE:
        return order_cuts(values, ranks)
    sample = values[:: max(size // _SAMPLE, 1)].sort(descending=True).values
    found = [_cut(values, rank, sample) for rank in ranks]
    return tuple(
        cut or order_cuts(values, [rank])[0] for cut, rank in zip(found, ranks, strict=True)
    )


def _cut(values: Tensor, rank: int, sample: Tensor) -> Cut | None:
    import torch

    if rank <= 0:
        return order_cuts(values[:1], [0])[0]
    share = rank / values.numel()
    spread = int(_MARGIN * (len(sample) * share * (1 - share)) ** 0.5) + 2
    middle = int(share * len(sample))
    top = float(sample[middle - spread]) if middle >= spread else float("inf")
    low = float(sample[middle + spread]) if middle + spread < len(sample) else 0.0
    above, inside = 0, []
    for tile in tiles(values.numel()):
        part = values[tile]
        above += int((part > top).sum())
        inside.append(part[(part <= top) & (part >= low)])
    near = torch.cat(inside)
    if not above < rank <= above + near.numel():
        return None
    threshold = float(near.kthvalue(near.numel() - (rank - above) + 1).values)
    wanted = rank - above - int((near > threshold).sum())
    for tile in tiles(values.numel()):
        tied = (values[tile] == threshold).nonzero().flatten()
        if len(tied) >= wanted:
            return Cut(threshold, tile.start + int(tied[wanted - 1]) + 1)
        wanted -= len(tied)
    return None
