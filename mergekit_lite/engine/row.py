"""One row in a worker's hands: its inputs tile by tile, and what was seen of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from math import prod

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.adapted import Joined
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.joined import JoinedRead
from mergekit_lite.engine.options import Contribution
from mergekit_lite.engine.supplies import Slot, slots_of
from mergekit_lite.engine.tiles import CACHE_LINE, TilePool
from mergekit_lite.errors import DataError, Interrupted, Problem
from mergekit_lite.kernels.codec import CODES
from mergekit_lite.kernels.row_keys import row_scratch
from mergekit_lite.kernels.row_marks import marked_bytes
from mergekit_lite.kernels.sums import SUM_BLOCK
from mergekit_lite.kernels.tile import BLOCK, work_shape
from mergekit_lite.ops import registry
from mergekit_lite.plan.row_memory import LEAST_TILE
from mergekit_lite.plan.types import GATE, Job, Read

Write = Callable[[NDArray[np.uint8], int], None]
"""Takes the bytes of a tile and their offset in the output tensor."""


STRIDE = 1 << 20
"""Entries of a tile that is only looked at: a call of a kernel takes time of its own."""


class Row:
    """One row being computed by one worker: its inputs in memory and its counters.

    Args:
        job: the row.
        readers: open weight files.
        pool: the worker's memory.
        tile: entries of a tile, about.
        width: entries of a tensor row, where a step works on whole rows, else 0.
        weight_space: whether experts enter as whole weights.
        keep: inputs of at most so many bytes together are read once and kept, for a row that is
            swept more than once; what is left of it may hold marks.
        slots: what supplies the inputs; by default what the job's reads say.
    """

    def __init__(
        self,
        job: Job,
        readers: Readers,
        pool: TilePool,
        *,
        tile: int,
        width: int = 0,
        weight_space: bool,
        keep: int = 0,
        slots: list[Slot] | None = None,
    ) -> None:
        self.job = job
        self.weight_space = weight_space
        self.readers = readers
        self.pool = pool
        self.size = prod(job.shape)
        self.slots = slots_of(job, readers) if slots is None else slots
        self.codes = np.array([CODES[s.dtype] if s.dtype else -1 for s in self.slots], np.int64)
        self.is_delta = np.array([s.is_delta for s in self.slots], np.int64)
        self.width = width
        self.tile, self.block = tile_and_block(tile, width)
        width_of_all = sum(DTYPE_BYTES[slot.dtype] for slot in self.slots if slot.dtype)
        self.kept = 0 < self.size * width_of_all <= keep
        self.is_loaded = False
        self._spare = keep - self.size * width_of_all * self.kept
        held = self.size if self.kept else min(self.tile, max(self.size, 1))
        self.space = pool.positions(self.slots, held)
        self.at = self.start = self.space.copy()
        self.bad = np.zeros(len(self.slots) + 1, np.int64)
        self.norms = np.zeros(len(self.slots), np.float64)
        self.work = np.empty(work_shape(len(job.reads), max(self.block, SUM_BLOCK)), np.float32)
        self.scratch = np.zeros(row_scratch(width), np.int64)

    @property
    def stride(self) -> int:
        """Entries of a tile in a sweep that writes nothing: many where all are in memory."""
        return max(self.tile, STRIDE) if self.kept and not self.width else self.tile

    def piece(self, entries: int) -> int:
        """Return about so many entries: whole rows where a step works on rows."""
        return max(entries // self.width, 1) * self.width if self.width else entries

    def room_for_marks(self) -> int:
        """Return at which byte of `scratch` the marks of one more expert may lie, -1: nowhere."""
        nbytes = -(-marked_bytes(self.width, self.size // max(self.width, 1)) // 8) * 8
        if nbytes > self._spare:
            return -1
        self._spare -= nbytes
        begin = self.scratch.nbytes
        self.scratch = np.zeros(len(self.scratch) + nbytes // 8, np.int64)
        return begin

    def tiles(self, stop: threading.Event, size: int = 0) -> Iterator[tuple[int, int]]:
        """Yield (first, count) of every tile once its inputs are in memory."""
        size = size or self.tile
        for first in range(0, self.size, size):
            if stop.is_set():
                raise Interrupted("stopped")
            count = min(size, self.size - first)
            self.load(first, count)
            yield first, count

    def load(self, first: int, count: int) -> None:
        """Bring entries [first, first + count) of every input into the pool."""
        if not self.kept:
            self._load(first, count)
            return
        if not self.is_loaded:
            self._load(0, self.size)
            self.start = self.at.copy()
            self.is_loaded = True
        for i, slot in enumerate(self.slots):
            if slot.dtype:
                self.at[i] = self.start[i] + first * DTYPE_BYTES[slot.dtype]

    def _load(self, first: int, count: int) -> None:
        for i, slot in enumerate(self.slots):
            if slot.supply is None:
                continue
            width = DTYPE_BYTES[slot.dtype]
            begin = int(self.space[i]) + slot.supply.offset(first) % CACHE_LINE
            self.at[i] = begin
            slot.supply.fill(first, count, self.pool.raw[begin : begin + count * width])

    def check_finite(self, allow: bool) -> None:
        """Raise DataError naming every input, or the output, that holds NaN or infinity."""
        if allow or not self.bad.any():
            self.bad[:] = 0
            return
        problems = [
            Problem(
                f"{self.bad[i]:,} of {self.size:,} entries are NaN or infinite",
                where=f"{_culprit(slot)}: {slot.read.name or self.job.name}",
                hint="the input is broken: fetch or train it again, leave this tensor to the "
                "base by a rule, or pass --allow-nonfinite",
            )
            for i, slot in enumerate(self.slots)
            if self.bad[i]
        ]
        if not problems:
            problems = [
                Problem(
                    f"{self.bad[-1]:,} of {self.size:,} merged entries do not fit {self.job.dtype}",
                    where=self.job.name,
                    hint="lower the weights, choose output dtype bfloat16 or float32, or pass "
                    "--allow-nonfinite",
                )
            ]
        raise DataError(problems)

    def contributions(self) -> dict[str, Contribution]:
        """Return what each expert gave to this row."""
        return contributions_of(self.slots, self.norms.tolist(), self.weight_space)


def whole_width(job: Job) -> int:
    """Return the entries of a tensor row where a step of the job works on whole rows, else 0."""
    for step in job.steps:
        spec = registry()[step.op]
        if spec.reach_for({**spec.defaults(), **step.params}) == "row":
            return job.shape[-1] if job.shape else 1
    return 0


def tile_and_block(tile: int, width: int) -> tuple[int, int]:
    """Return the entries of a tile and of a block; both hold whole rows where a step needs rows."""
    if width == 0:
        return max(tile, LEAST_TILE), BLOCK
    block = max(BLOCK // width, 1) * width
    return max(tile // block, 1) * block, block


def contributions_of(
    slots: list[Slot], squares: list[float], weight_space: bool
) -> dict[str, Contribution]:
    """Return each expert's part in one row; in weight space no delta is measured."""
    parts = {}
    for slot, square in zip(slots[1:], squares[1:], strict=True):
        for read, own in _apart(slot, square):
            if read.source in ("", "base", GATE):
                continue
            matched = int(not read.zero)
            parts[read.source] = (
                Contribution(matched)
                if weight_space
                else Contribution(matched, matched, int(own != 0.0), own)
            )
    return parts


def _culprit(slot: Slot) -> str:
    """Return whose input is not finite; of adapters that are added up, those that are not."""
    broken = slot.supply.broken if isinstance(slot.supply, Joined) else ()
    return ", ".join(broken) or slot.read.source


def _apart(slot: Slot, square: float) -> Iterator[tuple[Read, float]]:
    """Yield the experts of a slot, each with the sum of squares of its own delta."""
    if isinstance(slot.read, JoinedRead) and isinstance(slot.supply, Joined):
        yield from zip((part for part, _ in slot.read.parts), slot.supply.squares, strict=True)
    else:
        yield slot.read, square
