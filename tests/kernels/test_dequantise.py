"""Loops that decode codes, against the formula entry by entry."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.kernels.dequantise import GROUP, STRIP, dequantise_columns, dequantise_rows
from tests.kernels.arrays import same


def numbers_of(rows: np.ndarray, table: np.ndarray, shift: int) -> np.ndarray:
    """Return what all codes of each row of bytes stand for."""
    found: np.ndarray = table.reshape(256, 1 << shift)[rows]
    return found.reshape(len(rows), -1)


@settings(max_examples=200)
@given(
    shift=st.sampled_from([0, 1, 2]),
    rows=st.integers(1, 5),
    matrices=st.integers(1, 3),
    width=st.integers(1, 150),
    across=st.integers(1, 70),
    down=st.integers(1, 3),
    zero=st.booleans(),
    order=st.booleans(),
    data=st.data(),
)
def test_a_rectangle_of_rows_is_that_of_the_formula(
    shift: int, rows: int, matrices: int, width: int, across: int, down: int,
    zero: bool, order: bool, data: st.DataObject,
) -> None:  # fmt: skip
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    table = random.normal(size=256 << shift).astype(np.float32)
    stride, lines, cells = -(-width >> shift), -(-rows // down), -(-width // across)
    stride += data.draw(st.integers(0, 2))  # rows may end with bytes that are nobody's
    raw = random.integers(0, 256, (matrices * rows, stride), dtype=np.uint8)
    shape = (matrices * lines, cells)
    scales = random.normal(size=shape).astype(np.float32)
    zeros = random.normal(size=shape).astype(np.float32) if zero else np.empty((0, cells), "f4")
    cell = random.integers(0, cells, width, dtype=np.int32) if order else np.arange(width) // across
    row = np.arange(matrices * rows)
    line = row // rows * lines + row % rows // down
    value = numbers_of(raw, table, shift)[:, :width]
    each = np.ix_(line, cell)
    value = ((value - zeros[each]) if zero else value) * scales[each]

    top = data.draw(st.integers(0, matrices * rows - 1))
    height = data.draw(st.integers(1, matrices * rows - top))
    column = data.draw(st.integers(0, width - 1))
    columns = data.draw(st.integers(1, width - column))
    held = int(line[top])
    end = int(line[top + height - 1]) + 1
    out = np.full(height * columns, 9, np.float32)
    dequantise_rows(
        raw.reshape(-1), table, shift, scales[held:end], zeros[held:end],
        cell.astype(np.int32) if order else np.empty(0, np.int32), across, rows, down, lines,
        top * stride + (column >> shift), stride, column & ((1 << shift) - 1),
        held, top, column, columns, out,
    )  # fmt: skip
    assert same(out, value[top : top + height, column : column + columns])


@settings(max_examples=100)
@given(
    width=st.one_of(st.integers(1, 5), st.integers(STRIP - 1, 2 * STRIP + 1)),
    blocks=st.integers(1, 4),
    data=st.data(),
)
def test_a_rectangle_of_columns_is_that_of_the_formula(
    width: int, blocks: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    table, powers = (random.normal(size=n).astype(np.float32) for n in (512, 256))
    codes = random.integers(0, 256, (width, blocks, GROUP // 2), dtype=np.uint8)
    scales = random.integers(0, 256, (width, blocks), dtype=np.uint8)
    value = numbers_of(codes.reshape(width, -1), table, 1) * powers[scales].repeat(GROUP, 1)

    top = data.draw(st.integers(0, blocks * GROUP - 1))
    height = data.draw(st.integers(1, blocks * GROUP - top))
    column = data.draw(st.integers(0, width - 1))
    columns = data.draw(st.integers(1, width - column))
    out = np.full(height * columns, 9, np.float32)
    scratch = np.empty((GROUP // 2, STRIP), np.uint8), np.empty(STRIP, np.float32)
    dequantise_columns(codes, scales, table, powers, *scratch, top, column, columns, out)
    assert same(out, value.T[top : top + height, column : column + columns])
