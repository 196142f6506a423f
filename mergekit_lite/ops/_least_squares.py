"""Solving for a merged matrix where each expert counts by a Gram matrix of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lite.ops._spectral import TAIL

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-13


def solve_right(
    numerator: Tensor, lower: Tensor, ridge: float, *, unseen: float = TAIL**2
) -> Tensor:
    """Return `numerator @ inverse(gram + ridge * I)` in fp64.

    Args:
        numerator: fp64, rows x size.
        lower: the Gram matrix's lower triangle, fp64; it is overwritten.
        ridge: added to the diagonal; raised to 1e-13 of the mean diagonal, below which fp64 could
            not tell the matrix from a singular one. 0 takes the pseudo-inverse, through
            eigenvectors: the smallest solution.
        unseen: for the pseudo-inverse: eigenvalues below this part of the largest count as zero.
    """
    import torch

    if ridge == 0:
        return _pseudo(numerator, lower, unseen)
    diagonal = lower.diagonal()
    diagonal += max(ridge, _LEAST * float(diagonal.mean()))
    factor = torch.linalg.cholesky(lower)
    return torch.cholesky_solve(numerator.T, factor).T


def _pseudo(numerator: Tensor, lower: Tensor, unseen: float) -> Tensor:
    import torch

    values, vectors = torch.linalg.eigh(lower)
    kept = values > unseen * values[-1]
    vectors = vectors[:, kept]
    solution: Tensor = (numerator @ vectors / values[kept]) @ vectors.T
    return solution
