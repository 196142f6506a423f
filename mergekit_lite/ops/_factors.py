"""Merging adapters as adapters: the mathematics of low-rank factors, in fp64.

Every function takes pairs (B, A) of factors whose product is an expert's delta, B (out x rank) and
A (rank x in), scales already in A. A matrix of out x in is never made: bases come from the QR
factorisation of factors side by side and the SVD of a small core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple["Tensor", "Tensor"]
Merge = Callable[[Mapping[str, "Tensor"]], "Tensor"]
"""Merges matrices by expert into one; an expert that has no factors is zero."""

NEGLIGIBLE = 1e-10
"""Singular values below this part of the largest one span nothing."""
KNOTS_NEGLIGIBLE = 1e-5
"""The same in KnOTS, whose authors drop more."""


def cat(pairs: Sequence[Pair], coefficients: Sequence[float]) -> Pair:
    """Return factors whose product is the sum of coefficient * B A: all of them side by side."""
    import torch

    left = torch.cat([b for b, _ in pairs], dim=1)
    right = torch.cat([c * a for c, (_, a) in zip(coefficients, pairs, strict=True)])
    return left, right


def linear(pairs: Sequence[Pair], coefficients: Sequence[float]) -> Pair:
    """Return PEFT's `linear`: both factors averaged with the roots of the coefficients.

    The product has cross terms B_i A_j, which belong to no expert; ranks must be equal.
    """
    roots = [abs(c) ** 0.5 for c in coefficients]
    signs = [-1.0 if c < 0 else 1.0 for c in coefficients]
    left = sum(
        (r * b for r, (b, _) in zip(roots[1:], pairs[1:], strict=True)), roots[0] * pairs[0][0]
    )
    scaled = [s * r * a for s, r, (_, a) in zip(signs, roots, pairs, strict=True)]
    return left, sum(scaled[1:], scaled[0])


def truncated(pair: Pair, rank: int) -> Pair:
    """Return the best factors of `rank` for a product: its SVD, by QR of both factors.

    Singular values are shared out evenly, as their roots. Ranks that the product has not are zero.
    """
    import torch

    left_base, left = torch.linalg.qr(pair[0])
    right_base, right = torch.linalg.qr(pair[1].T)
    u, s, v = torch.linalg.svd(left @ right.T, full_matrices=False)
    kept = min(rank, len(s))
    roots = s[:kept].sqrt()
    b = _signed(left_base @ u[:, :kept], v[:kept])
    return _filled(b[0] * roots, roots[:, None] * (b[1] @ right_base.T), rank)


def core_space(pairs: Mapping[str, Pair], merge: Merge, rank: int) -> Pair:
    """Return the merge of all deltas in the space that their factors span.

    The bases are the left singular vectors of all B side by side and the right ones of all A; each
    delta is there a small matrix, without loss, and `merge` works on those.
    Panariello et al. 2025, arXiv 2509.17786.
    """
    import torch

    left = _basis(torch.cat([b for b, _ in pairs.values()], dim=1), NEGLIGIBLE)
    right = _basis(torch.cat([a for _, a in pairs.values()]).T, NEGLIGIBLE)
    cores = {name: (left.T @ b) @ (a @ right) for name, (b, a) in pairs.items()}
    return truncated((left @ merge(cores).to(left), right.T), rank)


def knots(pairs: Mapping[str, Pair], merge: Merge, rank: int) -> Pair:
    """Return the merge of all deltas in one shared left basis.

    [delta_1 | ... | delta_N] = U S [V_1 | ... | V_N]; `merge` works on the matrices S V_i, and U
    times their merge is the result. Stoica et al. 2025, arXiv 2410.19735.
    """
    import torch

    base, mixed = torch.linalg.qr(torch.cat([b for b, _ in pairs.values()], dim=1))
    parts = mixed.split([b.shape[1] for b, _ in pairs.values()], dim=1)
    aligned = [part @ a for part, (_, a) in zip(parts, pairs.values(), strict=True)]
    turn = _basis(torch.cat(aligned, dim=1), KNOTS_NEGLIGIBLE)
    turned = {name: turn.T @ part for name, part in zip(pairs, aligned, strict=True)}
    return truncated((base @ turn, merge(turned).to(base)), rank)


def _basis(wide: Tensor, negligible: float) -> Tensor:
    """Return the left singular vectors of a matrix that belong to more than negligible values.

    The longer side goes through QR first. Each vector's largest entry is positive.
    """
    import torch

    if wide.shape[0] >= wide.shape[1]:
        base, small = torch.linalg.qr(wide)
        u, s, _ = torch.linalg.svd(small, full_matrices=False)
        u = base @ u
    else:
        _, small = torch.linalg.qr(wide.T)
        u, s, _ = torch.linalg.svd(small.T, full_matrices=False)
    return _signed(u[:, s > negligible * s.max().clamp_min(1e-300)], None)[0]


def _signed(u: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return singular vectors with the largest entry of each left one positive."""
    import torch

    if u.shape[1] == 0:
        return u, u.T if v is None else v
    at = u.abs().argmax(dim=0)
    signs = torch.where(u.gather(0, at[None])[0] < 0, -1.0, 1.0).to(u)
    return u * signs, u.T if v is None else v * signs[:, None]


def _filled(b: Tensor, a: Tensor, rank: int) -> Pair:
    """Return factors with zeros up to `rank`."""
    import torch

    missing = rank - b.shape[1]
    if missing <= 0:
        return b, a
    return (
        torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1),
        torch.cat([a, a.new_zeros(missing, a.shape[1])]),
    )
