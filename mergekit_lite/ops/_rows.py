"""Sums over rows and columns in one fixed order: the same for any number of them, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mergekit_lite.ops._statistics import BLOCK, LANES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

ROWS = 64
"""Rows of a matrix that are added up before their sum is added to that of all."""


def as_rows(tensor: Tensor) -> Tensor:
    """Return a matrix view: a row is the last dimension, a 1-D tensor is one row."""
    width = tensor.shape[-1] if tensor.dim() else 1
    return tensor.reshape(math.prod(tensor.shape[:-1]), width)


def row_sums(terms: Tensor) -> Tensor:
    """Return the sum of each row of a matrix as a column, in fp64.

    Order of operations: a row is cut into blocks of 4096 entries; in a block, entry j goes to lane
    j % 16, lanes are added in order, and so are blocks, each from 0.
    """
    rows, width = terms.shape
    size = min(-(-width // LANES) * LANES, BLOCK)
    blocks = -(-width // BLOCK)
    if not width:
        return _padded(terms, 1)[:, :1]
    steps = _padded(terms, blocks * size).reshape(rows, blocks, size // LANES, LANES)
    lanes = _added([steps[:, :, step] for step in range(size // LANES)])
    each = _added([lanes[:, :, lane] for lane in range(LANES)])
    return _added([each[:, block : block + 1] for block in range(blocks)])


def row_dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the fp64 inner product of each pair of rows as a column."""
    return row_sums(left.double() * right.double())


def column_dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the fp64 inner product of each pair of columns as a column.

    Order of operations: 64 rows are added in order from 0, and such sums in order from 0.
    """
    terms = (left.double() * right.double()).t()
    groups = -(-terms.shape[1] // ROWS)
    if not groups:
        return _padded(terms, 1)[:, :1]
    steps = _padded(terms, groups * ROWS).t().reshape(groups, ROWS, len(terms))
    some = _added([steps[:, row] for row in range(ROWS)])
    return _added(list(some))[:, None]


def products_of(
    inputs: Sequence[Tensor], dots: Callable[[Tensor, Tensor], Tensor]
) -> NDArray[np.float64]:
    """Return the inner products of all inputs of each row: (rows, inputs, inputs).

    Args:
        inputs: matrices of one shape.
        dots: `row_dots`, or `column_dots` for those of columns.
    """
    import numpy as np

    count = len(inputs)
    each = {
        (i, j): dots(inputs[i], inputs[j])[:, 0].cpu().numpy()
        for i in range(count)
        for j in range(i, count)
    }
    products = np.empty((len(each[0, 0]), count, count))
    for (i, j), values in each.items():
        products[:, i, j] = products[:, j, i] = values
    return products


def row_cosines(products: NDArray[np.float64], i: int, j: int) -> NDArray[np.float64]:
    """Return the cosine between two inputs in each row, 0 where one has no length."""
    import numpy as np

    with np.errstate(all="ignore"):  # what is not finite has been refused, unless it is allowed
        length = np.sqrt(products[:, i, i]) * np.sqrt(products[:, j, j])
        return products[:, i, j] / np.where(length > 0, length, np.inf)


def _padded(terms: Tensor, width: int) -> Tensor:
    import torch

    return torch.nn.functional.pad(terms, (0, width - terms.shape[1]))


def _added(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0].new_zeros(terms[0].shape)
    for term in terms:
        total += term
    return total
