"""The scales and zeros of a quantised tensor, line by line of their grid."""

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


HELD = 1 << 14
"""Scales that are read at a time, at least: reads in small pieces take longer than the decoding."""


class Grid:
    """The grid of scales, and of zeros, over the blocks of a tensor; some lines are in memory.

    Args:
        coded: how the tensor is stored.
        rows: of one matrix of it.
        width: its columns.
        fetch: reads of its stored parts.
        together: rows whose lines are wanted at the same time, at most.

    Attributes:
        rows: of a matrix, or more than there are where one scale is that of all.
        down: rows that share a scale.
        lines: of a matrix.
        scales: the lines that are held, in memory that stays the same.
        zeros: the same lines of zeros; no line where the tensor has none.
        groups: column of the grid for each column of the tensor; empty where they lie in order.
    """

    def __init__(self, coded: Coded, rows: int, width: int, fetch: Fetch, together: int) -> None:
        self._coded, self._fetch = coded, fetch
        self.rows, self.down = rows, coded.block[0]
        if coded.scale.size == 1:  # for all matrices
            self.rows = self.down = 1 << 62
        self.lines, self._across = ceil(rows / coded.block[0]), ceil(width / coded.block[1])
        self._total = coded.scale.size // max(self._across, 1)
        self._divisor = np.float32(1)
        if coded.divisor is not None:
            self._divisor = scales(fetched(fetch, coded.divisor), coded.divisor.dtype)[0]
        self.groups = self._columns(width)
        room = min(max(together, HELD // max(self._across, 1)), self._total)
        self.scales = np.empty((room, self._across), np.float32)
        self.zeros = np.empty((room if coded.zero is not None else 0, self._across), np.float32)
        self._held = range(0)

    def _columns(self, width: int) -> NDArray[np.int32]:
        """Return the grid column of every column of the tensor; nothing where they lie in order."""
        if self._coded.groups is None:
            return np.empty(0, np.int32)
        groups = fetched(self._fetch, self._coded.groups).view(np.int32)
        if (groups == -1).all():  # as packed without an order of activations
            return np.empty(0, np.int32)
        if groups.min() < 0 or groups.max() >= self._across:
            raise DataError(
                f"`{self._coded.groups.name}` names groups that are not there",
                hint="the checkpoint is damaged: fetch it again",
            )
        return groups

    def hold(self, row: int, rows: int) -> int:
        """Bring the lines of some rows into memory.

        Args:
            row: the first, counted over all matrices.
            rows: how many; at most `together`.

        Returns:
            Which line of the whole grid is the first in memory.
        """
        first, last = self._line(row), self._line(row + rows - 1) + 1
        if first not in self._held or last > self._held.stop:
            self._held = range(0)
            end = min(first + len(self.scales), self._total)
            self.scales[: end - first] = self._scales(first, end)
            if self._coded.zero is not None:
                self.zeros[: end - first] = self._zeros(self._coded.zero, first, end)
            self._held = range(first, end)
        return self._held.start

    def _line(self, row: int) -> int:
        return row // self.rows * self.lines + row % self.rows // self.down

    def _scales(self, first: int, last: int) -> NDArray[np.float32]:
        """Return lines [first, last) of the grid of scales."""
        info = self._coded.scale
        width = DTYPE_BYTES[info.dtype]
        raw = np.empty((last - first) * self._across * width, np.uint8)
        self._fetch(info, first * self._across * width, raw)
        found = scales(raw, info.dtype)
        if self._coded.divisor is not None:
            with np.errstate(all="ignore"):  # what is not finite is told of
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
