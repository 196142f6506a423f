"""Inner products of rows and of columns in fp64, in the order that `ops._rows` fixes."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel
from mergekit_lite.kernels.lanes import LANES, sum_of_products
from mergekit_lite.kernels.sums import SUM_BLOCK
from mergekit_lite.kernels.tile import load_inputs

ROWS: Final = 64
"""Rows that are added up before their sum is added to that of all."""


@inlined
def narrow_product(a: NDArray[np.float32], b: NDArray[np.float32], n: int) -> float:
    """Return the inner product of at most 16 entries: of one in each lane."""
    total = 0.0
    for j in range(n):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@kernel(
    "u1[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "b1", "i8[::1]", "f4[:,::1]", "i8", "i8",
    "f8[:,:,::1]",
)  # fmt: skip
def row_products_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    weight_space: bool,
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    width: int,
    count: int,
    products: NDArray[np.float64],
) -> None:
    """Write the inner products of all inputs of each row of a tile of whole rows.

    `products` has the shape (rows, inputs, inputs) and is 0 at first; the upper triangle of each
    row is filled.
    """
    inputs, x = at.shape[0] - 1, work[4:]
    if width <= LANES:
        rows = SUM_BLOCK // width
        for first in range(0, count // width, rows):
            here = min(rows, count // width - first)
            load_inputs(
                raw, at, code, is_delta, weight_space, bad, first * width, here * width, work
            )
            for row in range(here):
                begin, end = row * width, (row + 1) * width
                for i in range(inputs):
                    for other in range(i, inputs):
                        products[first + row, i, other] = narrow_product(
                            x[i, begin:end], x[other, begin:end], width
                        )
        return
    for row in range(count // width):
        for begin in range(0, width, SUM_BLOCK):
            n = min(SUM_BLOCK, width - begin)
            load_inputs(raw, at, code, is_delta, weight_space, bad, row * width + begin, n, work)
            for i in range(inputs):
                for other in range(i, inputs):
                    products[row, i, other] += sum_of_products(x[i], x[other], n)


@kernel(
    "u1[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "b1", "i8[::1]", "f4[:,::1]", "i8",
    "f8[:,:,::1]", "f8[:,:,::1]", "i8", "i8",
)  # fmt: skip
def column_products_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    weight_space: bool,
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    width: int,
    some: NDArray[np.float64],
    total: NDArray[np.float64],
    first: int,
    count: int,
) -> None:
    """Add a tile's part of the inner products of all inputs of each column.

    `some` holds the sums of the rows since the last multiple of 64, `total` those before; both
    have the shape (inputs, inputs, columns), of which the upper triangle is filled.
    """
    inputs, x = at.shape[0] - 1, work[4:]
    for start in range(0, count, SUM_BLOCK):
        n = min(SUM_BLOCK, count - start)
        load_inputs(raw, at, code, is_delta, weight_space, bad, start, n, work)
        done = 0
        while done < n:
            row = (first + start + done) // width
            column = first + start + done - row * width
            m = min(n - done, width - column)
            is_last = row % ROWS == ROWS - 1
            for i in range(inputs):
                for other in range(i, inputs):
                    a, b = x[i, done : done + m], x[other, done : done + m]
                    sums = some[i, other, column : column + m]
                    for j in range(m):
                        sums[j] = sums[j] + np.float64(a[j]) * np.float64(b[j])
                    if is_last:
                        every = total[i, other, column : column + m]
                        for j in range(m):
                            every[j] = every[j] + sums[j]
                            sums[j] = 0.0
            done += m
