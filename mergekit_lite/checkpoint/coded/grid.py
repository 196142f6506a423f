"""Applies the scales and zeros of a quantised tensor to a piece of it."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint._types import DTYPE_BYTES, Coded, TensorInfo
from mergekit_lite.checkpoint.coded.numbers import BITS, scales
from mergekit_lite.errors import DataError

Fetch = Callable[[TensorInfo, int, NDArray[np.uint8]], None]
"""Fills a buffer from a byte of a stored tensor on."""


def fetched(fetch: Fetch, info: TensorInfo) -> NDArray[np.uint8]:
    """Return all bytes of a (small) stored tensor."""
    raw = np.empty(info.nbytes, np.uint8)
    fetch(info, 0, raw)
    return raw


class Grid:
    """The grid of scales, and of zeros, over the blocks of a tensor.

    Args:
        coded: how the tensor is stored.
        rows: of one matrix of it.
        width: its columns.
        fetch: reads of its stored parts.
    """

    def __init__(self, coded: Coded, rows: int, width: int, fetch: Fetch) -> None:
        self._coded, self._fetch = coded, fetch
        self._rows = rows
        self._down, self._across = ceil(rows / coded.block[0]), ceil(width / coded.block[1])
        self._divisor = np.float32(1)
        if coded.divisor is not None:
            self._divisor = scales(fetched(fetch, coded.divisor), coded.divisor.dtype)[0]
        self._groups = self._columns(width)
        self._single: NDArray[np.float32] | None = None
        if coded.scale.size == 1:
            self._single = self._scales(0, 1)

    def _columns(self, width: int) -> NDArray[np.int32] | None:
        """Return the grid column of every column of the tensor; None where they lie in order."""
        if self._coded.groups is None:
            return None
        groups = fetched(self._fetch, self._coded.groups).view(np.int32)
        if (groups == -1).all():  # as packed without an order of activations
            return None
        if groups.min() < 0 or groups.max() >= self._across:
            raise DataError(
                f"`{self._coded.groups.name}` names groups that are not there",
                hint="the checkpoint is damaged: fetch it again",
            )
        return groups

    def apply(self, out: NDArray[np.float32], row: int, column: int) -> None:
        """Turn codes, as numbers, into what they stand for.

        Args:
            out: a piece of the tensor, changed in place.
            row: its first row, counted over all matrices.
            column: its first column.
        """
        coded = self._coded
        each = np.arange(row, row + out.shape[0])
        lines = each // self._rows * self._down + each % self._rows // coded.block[0]
        first, last = int(lines[0]), int(lines[-1]) + 1
        if coded.zero is not None:
            zeros = self._zeros(coded.zero, first, last)[lines - first]
            self._combine(out, zeros, column, np.subtract)
        if self._single is not None:
            np.multiply(out, self._single[0, 0], out=out)
            return
        factors = self._scales(first, last)[lines - first]
        self._combine(out, factors, column, np.multiply)

    def _scales(self, first: int, last: int) -> NDArray[np.float32]:
        """Return lines [first, last) of the grid of scales."""
        info = self._coded.scale
        width = DTYPE_BYTES[info.dtype]
        raw = np.empty((last - first) * self._across * width, np.uint8)
        self._fetch(info, first * self._across * width, raw)
        found = scales(raw, info.dtype)
        if self._coded.divisor is not None:
            found = found / self._divisor
        return found.reshape(last - first, self._across)

    def _zeros(self, info: TensorInfo, first: int, last: int) -> NDArray[np.float32]:
        """Return lines [first, last) of the grid of zeros."""
        if info.dtype != "I8":
            return self._packed_zeros(info, first, last)
        raw = np.empty((last - first) * self._across, np.uint8)
        self._fetch(info, first * self._across, raw)
        return raw.view(np.int8).astype(np.float32).reshape(last - first, self._across)

    def _packed_zeros(self, info: TensorInfo, first: int, last: int) -> NDArray[np.float32]:
        """Return lines of zeros that are packed down the rows, so many to a word."""
        bits = BITS[self._coded.form]
        per_word = 32 // bits
        begin, end = first // per_word, -(-last // per_word)
        raw = np.empty((end - begin) * self._across * 4, np.uint8)
        self._fetch(info, begin * self._across * 4, raw)
        words = raw.view(np.uint32).reshape(end - begin, self._across)
        shifts = (np.arange(per_word, dtype=np.uint32) * np.uint32(bits))[None, :, None]
        codes = (words[:, None, :] >> shifts) & np.uint32((1 << bits) - 1)
        lines = codes.reshape(-1, self._across)[first - begin * per_word :][: last - first]
        return lines.astype(np.float32) - np.float32(1 << (bits - 1))

    def _combine(
        self, out: NDArray[np.float32], grid: NDArray[np.float32], column: int, op: np.ufunc
    ) -> None:
        """Apply an operation to every entry and its line's value of the grid."""
        rows, columns = out.shape
        block = self._coded.block[1]
        if self._groups is not None:
            op(out, grid[:, self._groups[column : column + columns]], out=out)
        elif grid.shape[1] == 1:
            op(out, grid, out=out)
        elif column % block == 0 and columns % block == 0:
            begin = column // block
            blocks = out.reshape(rows, -1, block)
            op(blocks, grid[:, begin : begin + blocks.shape[1], None], out=blocks)
        else:
            begin, end = column // block, -(-(column + columns) // block)
            each = np.repeat(grid[:, begin:end], block, axis=1)
            skip = column - begin * block
            op(out, each[:, skip : skip + columns], out=out)
