"""The best low-rank form of one matrix, by a randomised SVD or the full one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from torch import Tensor

OVERSAMPLED = 12
"""Directions drawn beyond the rank."""
PASSES = 3
"""Products with the matrix and its transpose that sharpen the drawn directions."""


@dataclass(frozen=True)
class Wanted:
    """How closely a matrix is to be met.

    Attributes:
        rank: of the factors; with `energy`, the largest allowed.
        energy: part of the sum of squares that the factors must hold; None for a fixed rank.
        exact: use the full SVD.
    """

    rank: int
    energy: float | None = None
    exact: bool = False


def factors(matrix: Tensor, wanted: Wanted, name: str) -> tuple[Tensor, Tensor]:
    """Return B (out x r) and A (r x in), whose product is near the matrix.

    Singular values are shared out evenly, as their roots. The randomised SVD (Halko et al. 2011,
    arXiv 0909.4061) draws its directions from a generator seeded by `name`; with `energy` it draws
    more of them until they hold enough. Rank 0 where the matrix is zero.
    """
    u, s, v = directions(matrix, wanted, name)
    roots = s.sqrt()
    return u * roots, roots[:, None] * v


def directions(matrix: Tensor, wanted: Wanted, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return singular vectors (out x r), values (r) and vectors (r x in); see `factors`."""
    import torch

    most = min(wanted.rank, *matrix.shape)
    total = float(matrix.double().square().sum())
    if wanted.exact:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        drawn = most if wanted.energy is None else min(32, most)
        u, s, v = _randomised(matrix, drawn, name)
        while drawn < most and not _holds(s[:drawn], total, wanted.energy):
            drawn = min(2 * drawn, most)
            u, s, v = _randomised(matrix, drawn, name)
    rank = _rank(s[:most], total, wanted.energy)
    return u[:, :rank], s[:rank], v[:rank]


def _randomised(matrix: Tensor, rank: int, name: str) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    width = min(rank + OVERSAMPLED, *matrix.shape)
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    drawn = torch.randn(matrix.shape[1], width, generator=generator)
    base = torch.linalg.qr(matrix @ drawn)[0]
    for _ in range(PASSES):
        base = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ base)[0])[0]
    u, s, v = torch.linalg.svd(base.T @ matrix, full_matrices=False)
    return base @ u, s, v


def _holds(s: Tensor, total: float, energy: float | None) -> bool:
    return energy is None or float(s.double().square().sum()) >= energy * total


def _rank(s: Tensor, total: float, energy: float | None) -> int:
    """Return how many singular values are kept: those that are not nothing, and enough of them."""
    if total == 0.0 or not len(s):
        return 0
    some = int((s > 1e-7 * s[0]).sum())
    if energy is None:
        return some
    held = s.double().square().cumsum(0)
    enough = int((held < energy * total).sum()) + 1
    return min(enough, some)
