"""Decodes any range of entries of a quantised tensor, reading no more of it than that takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint._types import DTYPE_BYTES, Coded, TensorInfo
from mergekit_lite.checkpoint.coded.grid import Fetch, Grid, fetched
from mergekit_lite.checkpoint.coded.numbers import BITS, look_up, scales
from mergekit_lite.errors import DataError

PIECE = 1 << 16
"""Entries that are decoded at a time, which bounds the memory that it takes on the way."""

GROUP = 32
"""Codes that share a scale where codes are stored transposed."""


class Decoder(Protocol):
    """Decodes one tensor."""

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        """Put the numbers of entries from `first` on into `out`, as many as it has room for."""


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
    return Transposed(info, coded, fetch) if coded.transposed else Rows(info, coded, fetch)


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
        self._coded, self._fetch = coded, fetch
        self._width = info.shape[-1] if info.shape else 1
        self._rows = info.shape[-2] if len(info.shape) > 1 else 1
        stored = coded.codes.shape[-1] if coded.codes.shape else 1
        self._stride = stored * DTYPE_BYTES[coded.codes.dtype]
        self._grid = Grid(coded, self._rows, self._width, fetch)
        self._memory = np.empty(0, np.uint8)

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        at = 0
        for row, rows, column, columns in pieces(first, out.size, self._width):
            size = rows * columns
            part = out[at : at + size].reshape(rows, columns)
            self._codes(row, rows, column, columns, part)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told of
                self._grid.apply(part, row, column)
            at += size

    def _codes(
        self, row: int, rows: int, column: int, columns: int, out: NDArray[np.float32]
    ) -> None:
        per_byte = 8 // BITS[self._coded.form]
        begin, end = column // per_byte, -(-(column + columns) // per_byte)
        if rows > 1:
            begin, end = 0, self._stride
        raw = self._raw(rows * (end - begin))
        self._fetch(self._coded.codes, row * self._stride + begin, raw)
        if raw.size * per_byte == out.size:
            look_up(raw, self._coded.form, out.reshape(-1))
            return
        found = look_up(raw, self._coded.form).reshape(rows, -1)
        skip = column - begin * per_byte
        out[:] = found[:, skip : skip + columns]

    def _raw(self, nbytes: int) -> NDArray[np.uint8]:
        """Return memory for codes, the same for all pieces."""
        if self._memory.nbytes < nbytes:
            self._memory = np.empty(nbytes, np.uint8)
        return self._memory[:nbytes]


class Transposed:
    """Codes in blocks of 32 down the rows: (matrices, columns, row blocks, 16 bytes).

    One matrix is kept in memory, because a row of the tensor has a byte in each of its blocks.
    """

    def __init__(self, info: TensorInfo, coded: Coded, fetch: Fetch) -> None:
        self._coded, self._fetch = coded, fetch
        self._rows, self._width = info.shape[-2:]
        self._blocks = self._rows // GROUP
        self._matrix = -1
        self._codes = np.empty((self._width, self._blocks, GROUP // 2), np.uint8)
        self._scales = np.empty((self._width, self._blocks), np.uint8)

    def fill(self, first: int, out: NDArray[np.float32]) -> None:
        done, size = 0, out.size
        while done < size:
            row, column = divmod(first + done, self._width)
            columns = min(self._width - column, size - done)
            rows = 1
            if columns == self._width:
                # No further than the block, which is decoded whole.
                left = GROUP - row % self._rows % GROUP
                rows = min((size - done) // self._width, left)
            part = out[done : done + rows * columns].reshape(rows, columns)
            self._block(row, column, part)
            done += rows * columns

    def _block(self, row: int, column: int, out: NDArray[np.float32]) -> None:
        matrix, row = divmod(row, self._rows)
        self._load(matrix)
        block, skip = divmod(row, GROUP)
        step = PIECE // GROUP
        for begin in range(0, out.shape[1], step):
            end = min(begin + step, out.shape[1])
            taken = slice(column + begin, column + end)
            found = look_up(self._codes[taken, block], self._coded.form).reshape(-1, GROUP)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told of
                found *= scales(self._scales[taken, block], self._coded.scale.dtype)[:, None]
            out[:, begin:end] = found[:, skip : skip + out.shape[0]].T

    def _load(self, matrix: int) -> None:
        if matrix == self._matrix:
            return
        self._matrix = -1
        for info, memory in ((self._coded.codes, self._codes), (self._coded.scale, self._scales)):
            self._fetch(info, matrix * memory.nbytes, memory.reshape(-1))
        self._matrix = matrix
