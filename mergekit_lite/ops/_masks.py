"""Which entries are the largest of their tensor, their row or their group; of equal ones the first.

Ranks are of magnitudes, and a row is the last dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mergekit_lite.ops._rows import as_rows

if TYPE_CHECKING:
    from torch import Tensor

MOST = 32
"""Entries of a group, at most."""


def group_problems(params: Mapping[str, Any]) -> Iterator[str]:
    """Say what does not fit of `n` and `m`; both may be left out."""
    n, m = params.get("n"), params.get("m")
    if (n is None) != (m is None):
        yield "`n` and `m` belong together: give both, as `n: 2, m: 4`"
    elif n is not None and m is not None and n >= m:
        yield f"`n` {n} of every `m` {m} entries are all of them; give a smaller `n`"


def of_groups(magnitude: Tensor, n: int, m: int) -> Tensor:
    """Return the mask of the `n` largest of every `m` neighbours in a row.

    What is left at a row's end is a group too: of fewer than `n` entries all are kept.
    """
    import torch

    rows = as_rows(magnitude)
    width = rows.shape[1]
    # What a row is filled up with is smaller than any magnitude, so that it takes no place.
    groups = torch.nn.functional.pad(rows, (0, -width % m), value=-1.0).reshape(-1, m)
    before = torch.zeros_like(groups, dtype=torch.uint8)
    for place in range(m):
        one = groups[:, place : place + 1]
        before += groups < one
        before[:, place + 1 :] += groups[:, place + 1 :] == one
    mask = (before < n).reshape(len(rows), -1)[:, :width]
    return mask.reshape(magnitude.shape)


def of_rows(magnitude: Tensor, keep: int) -> Tensor:
    """Return the mask of the `keep` largest entries of each row."""
    import torch

    rows = as_rows(magnitude)
    if not rows.numel():
        return torch.ones_like(magnitude, dtype=torch.bool)
    least = rows.kthvalue(rows.shape[1] - keep + 1, dim=1, keepdim=True).values
    mask, equal = rows > least, rows == least
    left = keep - mask.sum(1, keepdim=True)
    mask |= equal & (equal.cumsum(1) <= left)
    return mask.reshape(magnitude.shape)


def of_tensor(magnitude: Tensor, keep: int) -> Tensor:
    """Return the mask of the `keep` largest entries of a tensor."""
    flat = magnitude.reshape(-1)
    if not flat.numel():
        return flat.bool().reshape(magnitude.shape)
    least = flat.kthvalue(len(flat) - keep + 1).values
    mask = flat > least
    ties = (flat == least).nonzero()[: keep - int(mask.sum())]
    mask[ties] = True
    return mask.reshape(magnitude.shape)
