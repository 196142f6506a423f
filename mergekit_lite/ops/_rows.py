"""Sums over rows in one fixed order: the same for any number of rows, on any device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def as_rows(tensor: Tensor) -> Tensor:
    """Return a matrix view: a row is the last dimension, a 1-D tensor is one row."""
    width = tensor.shape[-1] if tensor.dim() else 1
    return tensor.reshape(math.prod(tensor.shape[:-1]), width)


def row_sums(terms: Tensor) -> Tensor:
    """Return the sum of each row as a column, by halves.

    Order of operations: the row is cut at half of the next power of two and the second part added
    to the first, entry by entry, until one entry is left. `terms` may be overwritten.
    """
    width = terms.shape[-1]
    if width == 0:
        return terms.new_zeros(*terms.shape[:-1], 1)
    half = 1 << max(width - 1, 0).bit_length() >> 1
    while width > 1:
        terms[..., : width - half] += terms[..., half:width]
        width, half = half, half >> 1
    return terms[..., :1].clone()


def row_dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the fp64 inner product of each pair of rows as a column."""
    return row_sums(left.double() * right.double())
