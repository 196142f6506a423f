"""Turns the entries of a row into codes and scales while they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.coded.encode import CodeError, encoded, global_scale
from mergekit_lite.errors import DataError
from mergekit_lite.plan.row_memory import TILE_ENTRIES
from mergekit_lite.plan.types import Job

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Coder:
    """Takes a row's fp32 entries in order, and writes what stands for them.

    Codes are written as soon as the rows that share a scale are there; scales, which are few, when
    the row ends.

    Args:
        job: a row with a `coding`.
        write: takes bytes and where they begin in the shard's file.

    Attributes:
        looks: whether the entries must be seen once before they are taken.
        complete: all entries have been taken.
    """

    def __init__(self, job: Job, write: Callable[[Bytes, int], None]) -> None:
        coding = job.coding
        if coding is None:
            raise DataError(f"`{job.name}` is not to be quantised")
        self._name, self._write, self._codes = job.name, write, coding.codes
        self._parts = coding.parts
        self._rows, self._columns = job.shape
        self._together = self._codes.block[0] or 1
        self._left = np.empty(0, np.float32)
        self._done = 0  # rows
        self._scales: list[Bytes] = []
        self._peak = 0.0
        self.looks = self._codes.whole
        self.complete = False

    def look(self, part: Bytes, offset: int) -> None:
        """See entries; where these are all of them, take them as well."""
        values = part.view(np.float32)
        self._peak = max(self._peak, float(np.abs(values).max(initial=0.0)))
        if values.size == self._rows * self._columns:
            self.take(part, offset)

    def take(self, part: Bytes, offset: int) -> None:
        """Turn entries into codes, as far as the rows that share a scale are complete."""
        values = np.concatenate([self._left, part.view(np.float32)])
        there = len(values) // self._columns
        is_last = self._done + there == self._rows
        ready = there if is_last else there - there % self._together
        end = ready * self._columns
        step = max(self._together, (TILE_ENTRIES // self._columns) if self._together == 1 else 0, 1)
        matrix = values[:end].reshape(ready, self._columns)
        for first in range(0, ready, step):
            self._encode(matrix[first : first + step])
        self._left = values[end:].copy()
        self.complete = self._done == self._rows

    def _encode(self, values: Floats) -> None:
        """Write the codes of rows that share scales with no others."""
        try:
            made = [encoded(slab, self._codes, self._peak) for slab in self._slabs(values)]
        except CodeError as error:
            hint = "look at the inputs of this tensor, or name it under `ignore`"
            raise DataError(f"`{self._name}` {error}", hint=hint) from error
        codes = np.concatenate([each for each, _ in made], axis=1)
        self._write(codes.reshape(-1), self._parts[0].start + self._done * codes.shape[1])
        if self._codes.block != (0, 0) or not self._scales:
            self._scales.append(np.concatenate([scale for _, scale in made], axis=1).reshape(-1))
        self._done += len(values)

    def _slabs(self, values: Floats) -> Iterator[Floats]:
        """Yield parts of some rows, none of them large where blocks have many rows."""
        across = self._codes.block[1]
        step = max(TILE_ENTRIES // len(values) // across, 1) * across if self._together > 1 else 0
        for first in range(0, self._columns, step or self._columns):
            yield values[:, first : first + (step or self._columns)]

    def finish(self) -> None:
        """Write what there is beside the codes."""
        scales, *others = self._parts[1:]
        self._write(np.concatenate(self._scales), scales.start)
        for part in others:
            number: NDArray[np.generic] = np.array([self._rows, self._columns], np.int64)
            if part.dtype == "F32":
                number = np.array([global_scale(self._peak)], np.float32)
            self._write(number.view(np.uint8), part.start)
