"""Inner products of rows and columns against the torch functions that fix their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergekit_lite.kernels.products import column_products_tile, row_products_tile
from mergekit_lite.ops._rows import column_dots, products_of, row_dots
from tests.kernels.blocks import Tile, memory
from tests.kernels.test_sums import tensors_of

SHAPES = [(1, 1), (40, 3), (700, 15), (9, 16), (9, 17), (3, 4096), (2, 4097), (63, 5), (130, 77)]


def upper(products):  # type: ignore[no-untyped-def]
    """Return the triangle that kernels fill."""
    return np.triu(products)


def tiles_of(rows: int, step: int):  # type: ignore[no-untyped-def]
    return [(first, min(step, rows - first)) for first in range(0, rows, step)]


@pytest.mark.parametrize("step", [1, 50, 1000])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_rows_are_those_of_the_specification(shape: tuple[int, int], step: int) -> None:
    rows, width = shape
    base, *experts = tensors_of(rows * width, 4, torch.float32)
    deltas = [(expert - base).reshape(shape) for expert in experts]
    wanted = products_of(deltas, row_dots)
    for first, here in tiles_of(rows, step):
        part = slice(first * width, (first + here) * width)
        tile = Tile(base[part].tolist(), [expert[part].tolist() for expert in experts])
        got = np.zeros((here, 3, 3))
        row_products_tile(
            tile.raw, tile.at, tile.code, tile.is_delta, False, tile.bad, memory(3)[0], width,
            here * width, got,
        )  # fmt: skip
        assert np.array_equal(got, upper(wanted[first : first + here]))


@pytest.mark.parametrize("entries", [1, 100, 1 << 20])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] * shape[1] < 3000])
def test_products_of_columns_are_those_of_the_specification(
    shape: tuple[int, int], entries: int
) -> None:
    size = shape[0] * shape[1]
    base, *experts = tensors_of(size, 3, torch.float32)
    wanted = products_of([(expert - base).reshape(shape) for expert in experts], column_dots)
    some, total = np.zeros((2, 2, 2, shape[1]))
    for first, count in tiles_of(size, entries):
        part = slice(first, first + count)
        tile = Tile(base[part].tolist(), [expert[part].tolist() for expert in experts])
        column_products_tile(
            tile.raw, tile.at, tile.code, tile.is_delta, False, tile.bad, memory(2)[0], shape[1],
            some, total, first, count,
        )  # fmt: skip
    assert np.array_equal(np.moveaxis(total + some, 2, 0), upper(wanted))


def test_a_row_by_hand() -> None:
    """Rows (1, 2) and (3, 4) of one input, (1, 0) and (0, -1) of the other."""
    tile = Tile(None, [[1, 2, 3, 4], [1, 0, 0, -1]])
    got = np.zeros((2, 2, 2))
    row_products_tile(
        tile.raw, tile.at, tile.code, tile.is_delta, True, tile.bad, memory(2)[0], 2, 4, got
    )
    assert got.tolist() == [[[5, 1], [0, 1]], [[25, -4], [0, 1]]]
