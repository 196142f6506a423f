"""Sums of inputs whose factors follow from inner products of each row, or of each column."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.program import Program
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.products import column_products_tile, row_products_tile


def find_columns(row: Row, program: Program, stop: threading.Event) -> None:
    """Enter the factors of each column, from one sweep over all rows."""
    inputs, width = len(row.job.reads), program.columns
    some, total = np.zeros((2, inputs, inputs, width), np.float64)
    add = column_products_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, row.weight_space, row.bad, row.work,
        width, some, total,
    )  # fmt: skip
    for first, count in row.tiles(stop, row.stride):
        add(first, count)
    factors = _factors(program, np.ascontiguousarray(np.moveaxis(total + some, 2, 0)))
    program.weights = np.ascontiguousarray(factors.T).reshape(-1)


def by_row(
    row: Row, program: Program, merge: Callable[[NDArray[np.float32]], Callable[[int, int], None]]
) -> Callable[[int, int], None]:
    """Return what merges a tile of whole rows: their factors first, then the sum.

    Args:
        merge: from the memory of a tile's factors to what merges it.
    """
    inputs, width = len(row.job.reads), max(program.width, 1)
    weights = np.empty(min(row.tile, max(row.size, width)) // width * inputs, np.float32)
    multiply = row_products_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, row.weight_space, row.bad.copy(),
        row.work, width,
    )  # fmt: skip
    return partial(_merge_rows, program, width, multiply, weights, merge(weights))


def _merge_rows(
    program: Program,
    width: int,
    multiply: Callable[..., None],
    weights: NDArray[np.float32],
    merge: Callable[[int, int], None],
    first: int,
    count: int,
) -> None:
    rows, inputs = count // width, len(program.kinds)
    products = np.zeros((rows, inputs, inputs), np.float64)
    multiply(count, products)
    weights[: rows * inputs] = _factors(program, products).reshape(-1)
    merge(first, count)


def _factors(program: Program, products: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the factors that follow from inner products, as (vectors, inputs)."""
    if program.blend_each is None:
        raise TypeError("the combine has no factors of its own for rows or columns")
    return program.blend_each(products)
