"""A matrix whose lines are rounded group by group, each with a scale and a code of zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.compress._types import Floats

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 2.0**-24
"""The least that fp16 holds."""


@dataclass(frozen=True)
class Grid:
    """A rounded matrix: entries stand for `(code - zero) * scale` of their group.

    Attributes:
        codes: (lines, width).
        scales: (lines, groups), fp16.
        zeros: (lines, groups).
        bits: of a code.
        group: entries of a line that share a scale; what is left at its end is one too.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8]
    bits: int
    group: int

    def values(self) -> Floats:
        """Return what it stands for."""
        of = np.arange(self.codes.shape[1]) // self.group
        codes = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, of]
        return codes * self.scales.astype(np.float32)[:, of]


def ranges(matrix: Floats, bits: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return scale and zero of each line, for levels from its least entry to its largest.

    The range is widened to hold zero, which is one of the levels.
    """
    top = (1 << bits) - 1
    low = np.minimum(matrix.min(axis=1), np.float32(0))
    high = np.maximum(matrix.max(axis=1), np.float32(0))
    scales = np.maximum((high - low) / np.float32(top), np.float32(_LEAST)).astype(np.float16)
    zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 0, top)
    return scales, zeros.astype(np.uint8)


def nearest(
    matrix: Floats, scales: NDArray[np.float16], zeros: NDArray[np.uint8], bits: int
) -> NDArray[np.uint8]:
    """Return the codes of a matrix's entries, scale and zero of each line given."""
    steps = np.rint(matrix / scales.astype(np.float32)[:, None])
    shifted = steps + zeros.astype(np.float32)[:, None]
    codes: NDArray[np.uint8] = np.clip(shifted, 0, (1 << bits) - 1).astype(np.uint8)
    return codes


def rounded_to_nearest(matrix: Floats, bits: int, group: int) -> Grid:
    """Return a matrix with each entry rounded by itself."""
    parts = []
    for first in range(0, matrix.shape[1], group):
        part = matrix[:, first : first + group]
        scales, zeros = ranges(part, bits)
        parts.append((nearest(part, scales, zeros, bits), scales, zeros))
    return _grid(parts, bits, group)


def _grid(
    parts: list[tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]],
    bits: int,
    group: int,
) -> Grid:
    codes, scales, zeros = zip(*parts, strict=True)
    return Grid(np.concatenate(codes, axis=1), np.stack(scales, 1), np.stack(zeros, 1), bits, group)


def rounded_by_gram(matrix: Floats, bits: int, group: int, gram: Tensor, damp: float) -> Grid:
    """Return a matrix rounded column by column, later columns making up for earlier ones.

    GPTQ (Frantar et al. 2023, arXiv 2210.17323): what rounding a column changes of the outputs is
    taken into those not rounded yet. Columns come by falling mean square of their inputs; scales
    of a group are those of its entries before anything is rounded. fp64 inside.

    Args:
        matrix: (outputs, inputs).
        bits: of a code.
        group: entries of a line that share a scale.
        gram: (inputs, inputs), mean of the inputs' outer products.
        damp: part of the mean of its diagonal that is added to the diagonal.
    """
    import torch

    ready = rounded_to_nearest(matrix, bits, group)
    symmetric = (gram + gram.T).double() / 2
    diagonal = symmetric.diagonal().clone()
    unseen = diagonal <= 0
    symmetric.diagonal().copy_(torch.where(unseen, 1.0, diagonal))
    symmetric += torch.eye(len(symmetric), dtype=torch.float64) * damp * float(diagonal.mean())
    order = torch.argsort(diagonal, descending=True, stable=True)
    upper = _upper(symmetric[order][:, order]).numpy()
    at = order.numpy()
    left = matrix[:, at].astype(np.float64)
    codes = np.empty(matrix.shape, np.uint8)
    top = (1 << bits) - 1
    for column in range(len(at)):
        where = at[column]
        scale = ready.scales[:, where // group].astype(np.float64)
        zero = ready.zeros[:, where // group].astype(np.float64)
        code = np.clip(np.rint(left[:, column] / scale) + zero, 0, top)
        codes[:, where] = code.astype(np.uint8)
        error = (left[:, column] - (code - zero) * scale) / upper[column, column]
        left[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    return Grid(codes, ready.scales, ready.zeros, bits, group)


def _upper(symmetric: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse."""
    import torch

    inverse = torch.cholesky_inverse(torch.linalg.cholesky(symmetric))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper
