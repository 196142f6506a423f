"""An input whose rows lie elsewhere than in the output: moved, averaged or made up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.inputs import as_float32
from mergekit_lite.engine.supplies import Supply
from mergekit_lite.plan.row_maps import Place, RowMap

_MANY = 16
"""Runs of rows in a tile from which on one read of all that lies between may be cheaper."""
_SPARSE = 4
"""A read of everything between pays up to so many times the entries that are wanted."""
_SUMMED = 1 << 18
"""Entries that are summed in one go for the mean of all rows."""

Piece = tuple[int, int, int]
"""(first entry in the tile, entries, first entry in the part)."""


class Gathered:
    """Rows of stored tensors put together by a row map.

    Args:
        parts: what supplies each of the map's parts, row-major; all of them deltas, or none.
        row_map: where each row comes from.
        width: entries of a row.
        dtype: of the entries in memory: that of all parts, or F32.
    """

    def __init__(self, parts: Sequence[Supply], row_map: RowMap, width: int, dtype: str) -> None:
        self._parts, self._map, self._width = parts, row_map, width
        self.dtype = dtype
        self.is_delta = parts[0].is_delta
        self._starts = [run[0] for run in row_map.runs]

    def offset(self, first: int) -> int:
        """Return the file offset of entry `first`, 0 where it is not moved as it is."""
        row = first // max(self._width, 1)
        at = bisect_right(self._starts, row) - 1
        if at < 0:
            return 0
        start, count, part, stored = self._map.runs[at]
        if row >= start + count or self._parts[part].dtype != self.dtype:
            return 0
        return self._parts[part].offset(first + (stored - start) * self._width)

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        """Put the bytes of entries [first, first + count) into `out`."""
        size = DTYPE_BYTES[self.dtype]
        covered = 0
        by_part: dict[int, list[Piece]] = {}
        for part, piece in self._pieces(first, count):
            by_part.setdefault(part, []).append(piece)
            covered += piece[1]
        if covered < count:
            out[:] = 0
            self._computed(first, count, out)
        for part, pieces in by_part.items():
            self._move(self._parts[part], pieces, out, size)

    def _pieces(self, first: int, count: int) -> Iterator[tuple[int, Piece]]:
        """Yield (part, piece) for all that runs give of a tile."""
        width, end = self._width, first + count
        at = max(bisect_right(self._starts, first // max(width, 1)) - 1, 0)
        for start, rows, part, stored in self._map.runs[at:]:
            if start * width >= end:
                return
            low, high = max(start * width, first), min((start + rows) * width, end)
            if low < high:
                yield part, (low - first, high - low, low + (stored - start) * width)

    def _move(
        self, part: Supply, pieces: Sequence[Piece], out: NDArray[np.uint8], size: int
    ) -> None:
        low = min(at for _, _, at in pieces)
        span = max(at + count for _, count, at in pieces) - low
        wanted = sum(count for _, count, _ in pieces)
        if len(pieces) > _MANY and span <= _SPARSE * wanted:
            between = self._read(part, low, span)
            for to, count, at in pieces:
                begin = (at - low) * size
                out[to * size : (to + count) * size] = between[begin : begin + count * size]
            return
        for to, count, at in pieces:
            target = out[to * size : (to + count) * size]
            if part.dtype == self.dtype:
                part.fill(at, count, target)
            else:
                target[:] = self._read(part, at, count)

    def _read(self, part: Supply, first: int, count: int) -> NDArray[np.uint8]:
        """Return entries of a part in the dtype of this input."""
        raw = np.empty(count * DTYPE_BYTES[part.dtype], np.uint8)
        part.fill(first, count, raw)
        if part.dtype == self.dtype:
            return raw
        return as_float32(raw, part.dtype).view(np.uint8)

    def _computed(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        """Put shared and filled rows into a tile; they are in fp32."""
        if not self._map.averages:
            return
        tile, width = out.view(np.float32), self._width
        for row, places in self._map.shared:
            if _meets(row * width, width, first, count):
                _place(self._mean(places), row * width, first, tile)
        for start, rows in self._map.filled:
            for row in range(max(start, first // width), start + rows):
                if row * width >= first + count:
                    break
                _place(self._mean_of_all, row * width, first, tile)

    def _mean(self, places: Sequence[Place]) -> NDArray[np.float32]:
        total = np.zeros(self._width, np.float32)
        for part, row in places:
            total += self._read(self._parts[part], row * self._width, self._width).view(np.float32)
        return total / np.float32(len(places))

    @cached_property
    def _mean_of_all(self) -> NDArray[np.float32]:
        """The mean of all rows that are not filled; summed in fp64, in an order the map fixes."""
        width, total, rows = self._width, np.zeros(self._width, np.float64), 0
        step = max(_SUMMED // max(width, 1), 1)
        for _, count, part, stored in self._map.runs:
            for done in range(0, count, step):
                some = min(step, count - done)
                raw = self._read(self._parts[part], (stored + done) * width, some * width)
                total += raw.view(np.float32).reshape(some, width).sum(0, np.float64)
            rows += count
        for _, places in self._map.shared:
            total += self._mean(places)
            rows += 1
        return (total / max(rows, 1)).astype(np.float32)


def _meets(start: int, size: int, first: int, count: int) -> bool:
    return start < first + count and first < start + size


def _place(row: NDArray[np.float32], start: int, first: int, tile: NDArray[np.float32]) -> None:
    """Put what belongs to a tile that begins at entry `first` of a row that begins at `start`."""
    low, high = max(start, first), min(start + row.size, first + tile.size)
    if low < high:
        tile[low - first : high - first] = row[low - start : high - start]
