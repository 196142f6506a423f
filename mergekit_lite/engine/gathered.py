"""An input whose rows lie elsewhere than in the output: moved, averaged or made up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.supplies import Supply
from mergekit_lite.engine.tiles import fill_as
from mergekit_lite.plan.row_maps import Place, RowMap

_GAP = 1 << 14
"""Bytes that are read for nothing as fast as a second read takes to begin."""
_TOGETHER = 1 << 21
"""Most bytes that are read in one go of rows that lie apart."""
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
        for group, end in _groups(pieces, DTYPE_BYTES[part.dtype]):
            to, count, at = group[0]
            if len(group) == 1 and part.dtype == self.dtype:
                part.fill(at, count, out[to * size : (to + count) * size])
                continue
            between = self._read(part, at, end - at)
            for to, count, first in group:
                begin = (first - at) * size
                out[to * size : (to + count) * size] = between[begin : begin + count * size]

    def _read(self, part: Supply, first: int, count: int) -> NDArray[np.uint8]:
        """Return entries of a part in the dtype of this input."""
        raw = np.empty(count * DTYPE_BYTES[self.dtype], np.uint8)
        fill_as(self.dtype, part, first, count, raw)
        return raw

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


def _groups(pieces: Sequence[Piece], width: int) -> Iterator[tuple[list[Piece], int]]:
    """Yield pieces that are read in one go, and where that ends: short ones that lie close."""
    gap, most = _GAP // width, _TOGETHER // width
    yield from (([piece], sum(piece[1:])) for piece in pieces if piece[1] > gap)
    group: list[Piece] = []
    end = 0
    for piece in sorted((p for p in pieces if p[1] <= gap), key=itemgetter(2)):
        if group and (piece[2] - end > gap or sum(piece[1:]) - group[0][2] > most):
            yield group, end
            group = []
        end = max(end, sum(piece[1:])) if group else sum(piece[1:])
        group.append(piece)
    if group:
        yield group, end


def _meets(start: int, size: int, first: int, count: int) -> bool:
    return start < first + count and first < start + size


def _place(row: NDArray[np.float32], start: int, first: int, tile: NDArray[np.float32]) -> None:
    """Put what belongs to a tile that begins at entry `first` of a row that begins at `start`."""
    low, high = max(start, first), min(start + row.size, first + tile.size)
    if low < high:
        tile[low - first : high - first] = row[low - start : high - start]
