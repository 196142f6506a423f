"""An input that is stored as codes, as the fp32 numbers that they stand for.

Any range of entries is decoded reading no more of the codes than that takes. Layouts are described
by `checkpoint/coded/`, the loops are those of `kernels/dequantise.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import Coded, TensorInfo, aligned_buffer
from mergekit_lite.checkpoint.coded.grid import Fetch, Grid, fetched
from mergekit_lite.checkpoint.coded.numbers import BITS, scales, table
from mergekit_lite.checkpoint.reader import ALIGNMENT
from mergekit_lite.errors import DataError
from mergekit_lite.kernels._jit import Kernel
from mergekit_lite.kernels.dequantise import GROUP, STRIP, dequantise_columns, dequantise_rows

PIECE = 1 << 17
"""Entries that are decoded at a time, which bounds the memory that it takes on the way."""


class Decoder(Protocol):
    """Decodes one tensor."""

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        """Put the numbers of entries from `first` on into `out`, as many as it has room for."""


def kernel_of(coded: Coded) -> Kernel:
    """Return the kernel that a decoder calls."""
    return dequantise_columns if coded.transposed else dequantise_rows


def decoder(info: TensorInfo, fetch: Fetch) -> Decoder:
    """Return what decodes a tensor.

    Args:
        info: a tensor with `coded`.
        fetch: reads of its stored parts.

    Raises:
        DataError: its parts do not agree with its shape.
    """
    coded = info.coded
    if coded is None:
        raise DataError(f"`{info.name}` is not quantised")
    if coded.dims is not None:
        stored = fetched(fetch, coded.dims).view({"I64": np.int64}.get(coded.dims.dtype, np.int32))
        if tuple(stored.tolist()) != info.shape:
            raise DataError(
                f"`{info.name}` says that its shape is {stored.tolist()}, its codes are those of"
                f" {list(info.shape)}",
                hint="the checkpoint is damaged, or packed in a way that is not known here",
            )
    return Columns(info, coded, fetch) if coded.transposed else Rows(info, coded, fetch)


def pieces(first: int, count: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a range of entries into pieces of a matrix: (row, rows, column, columns), in order.

    A piece has whole rows, or is a part of one row.
    """
    last = first + count
    while first < last:
        row, column = divmod(first, width)
        if column or last - first < width or width > PIECE:
            columns = min(width - column, last - first, PIECE)
            yield row, 1, column, columns
            first += columns
        else:
            rows = min((last - first) // width, max(PIECE // width, 1))
            yield row, rows, 0, width
            first += rows * width


class Rows:
    """Codes that are stored row after row, as the tensor is."""

    def __init__(self, info: TensorInfo, coded: Coded, fetch: Fetch) -> None:
        self._stored, self._fetch = coded.codes, fetch
        self._width = info.shape[-1] if info.shape else 1
        rows = info.shape[-2] if len(info.shape) > 1 else 1
        self._per_byte = 8 // BITS[coded.form]
        self._stride = coded.codes.nbytes // max(info.size // max(self._width, 1), 1)
        together = max(PIECE // max(self._width, 1), 1)
        self._grid = grid = Grid(coded, rows, self._width, fetch, together)
        room = min(max(together * self._stride, PIECE // self._per_byte + 1), coded.codes.nbytes)
        self._memory = aligned_buffer(room + ALIGNMENT, 0)
        # Arrays are taken apart once, here: that takes longer than decoding some thousand codes.
        self._decode = dequantise_rows.on(
            self._memory, table(coded.form), self._per_byte >> 1, grid.scales, grid.zeros,
            grid.groups, coded.block[1], grid.rows, grid.down, grid.lines,
        )  # fmt: skip

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        done = 0
        for row, rows, column, columns in pieces(first, out.size, self._width):
            begin, end = column // self._per_byte, -(-(column + columns) // self._per_byte)
            if rows > 1:
                begin, end = 0, self._stride
            at = self._read(row * self._stride + begin, rows * (end - begin))
            skip, held = column - begin * self._per_byte, self._grid.hold(row, rows)
            part = out[done : done + rows * columns]
            self._decode(at, end - begin, skip, held, row, column, columns, part)
            done += part.size

    def _read(self, start: int, nbytes: int) -> int:
        """Bring bytes of the codes into memory and return where they lie there."""
        at = (self._stored.start + start) % ALIGNMENT
        self._fetch(self._stored, start, self._memory[at : at + nbytes])
        return at


class Columns:
    """Codes in blocks of 32 down the rows: (matrices, columns, row blocks, 16 bytes).

    One matrix is kept in memory, because a row of the tensor has a byte in each of its blocks.
    """

    def __init__(self, info: TensorInfo, coded: Coded, fetch: Fetch) -> None:
        self._coded, self._fetch = coded, fetch
        self._rows, self._width = info.shape[-2:]
        blocks = self._rows // GROUP
        self._matrix = -1
        self._codes = np.empty((self._width, blocks, GROUP // 2), np.uint8)
        self._scales = np.empty((self._width, blocks), np.uint8)
        powers = scales(np.arange(256, dtype=np.uint8), coded.scale.dtype)
        turned, factors = np.empty((GROUP // 2, STRIP), np.uint8), np.empty(STRIP, np.float32)
        self._decode = dequantise_columns.on(
            self._codes, self._scales, table(coded.form), powers, turned, factors
        )

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        done = 0
        for row, rows, column, columns in pieces(first, out.size, self._width):
            for inside, count in self._by_matrix(row, rows):
                part = out[done : done + count * columns]
                self._decode(inside, column, columns, part)
                done += part.size

    def _by_matrix(self, row: int, rows: int) -> Iterator[tuple[int, int]]:
        """Yield the rows of each matrix, (first, how many), once it is in memory."""
        last = row + rows
        while row < last:
            matrix, inside = divmod(row, self._rows)
            count = min(last - row, self._rows - inside)
            self._load(matrix)
            yield inside, count
            row += count

    def _load(self, matrix: int) -> None:
        if matrix == self._matrix:
            return
        self._matrix = -1
        for info, memory in ((self._coded.codes, self._codes), (self._coded.scale, self._scales)):
            self._fetch(info, matrix * memory.nbytes, memory.reshape(-1))
        self._matrix = matrix
