"""Results of stages as inputs of rows: computed as far as they are read, written nowhere.

A row of a stage is computed on the CPU, whatever device the rest runs on, so that its bytes do not
depend on that. Ops that work on entries or rows of a tensor give it tile by tile; others have it
computed whole, once for each row that reads it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.joined import joined
from mergekit_lite.engine.options import Options
from mergekit_lite.errors import MergekitLiteError, Problem, RecipeError
from mergekit_lite.kernels import enabled
from mergekit_lite.plan.questions import asked_by

if TYPE_CHECKING:
    from mergekit_lite.engine.inputs import Readers
    from mergekit_lite.engine.program import Program
    from mergekit_lite.engine.row import Row
    from mergekit_lite.engine.supplies import Supply
    from mergekit_lite.engine.torch_row import TorchRow
    from mergekit_lite.plan.types import Job, Plan

Bytes = NDArray[np.uint8]


def stage_supply(source: str, name: str, readers: Readers) -> Supply:
    """Return what supplies a tensor of a stage's result.

    Raises:
        RecipeError: the stage asks for statistics of the whole model, and has not been written.
    """
    from mergekit_lite.engine.program import compile_job
    from mergekit_lite.engine.supplies import supply_of

    stage, plan, job = readers.made_by(source, name)
    inner = readers.within(source)
    if job.kind == "copy":
        found = supply_of(job.reads[0], job, inner)
        if found is None:
            raise RecipeError(f"stage `{stage}` has nothing to copy", where=job.name)
        return found
    if any(True for _ in asked_by(job)):
        raise RecipeError(
            f"stage `{stage}` asks for statistics of the whole model, and is written by a run only",
            where=job.name,
            hint="run the stage as a recipe of its own and name its result",
        )
    job = joined(job)
    program = compile_job(job, plan.seed) if enabled() else None
    if program is not None:
        return Fused(stage, job, inner, program)
    return Chained(stage, job, inner, plan)


class _Result(ABC):
    """A tensor that is computed tile by tile.

    Args:
        stage: whose result it is.
        job: its row.
        readers: of the stage's models.
    """

    is_delta = False

    def __init__(self, stage: str, job: Job, readers: Readers) -> None:
        self.stage, self.job, self.readers = stage, job, readers
        self.dtype = job.dtype
        self._entry = DTYPE_BYTES[job.dtype]
        self._never = threading.Event()
        self._counted = 0
        """Entries from the first on whose deltas have been measured."""

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: Bytes) -> None:
        """Put the bytes of entries [first, first + count) into `out`."""
        try:
            self._fill(first, count, out)
        except MergekitLiteError as error:
            problems = [_named(problem, self.stage) for problem in error.problems]
            raise type(error)(problems) from None

    def _fill(self, first: int, count: int, out: Bytes) -> None:
        row, tile = self._ready
        # Steps that work on rows take whole ones; what is not asked for is left out again.
        width = row.width or 1
        begin = first // width * width
        last = min(-(-(first + count) // width) * width, row.size)
        start = begin
        while start < last:
            n = min(row.tile, last - start)
            if start < self._counted < start + n:
                n = self._counted - start  # so that every tile is counted whole or not at all
            made = self._measured(row, tile, start, n)
            low, high = max(start, first), min(start + n, first + count)
            if low < high:
                part = made[(low - start) * self._entry : (high - start) * self._entry]
                out[(low - first) * self._entry : (high - first) * self._entry] = part
            start += n

    def _measured(
        self, row: Row, tile: Callable[[int, int], Bytes], start: int, count: int
    ) -> Bytes:
        """Return a tile; what it adds to the norms counts the first time that it is made."""
        before = row.norms.copy()
        made = tile(start, count)
        if start != self._counted:
            row.norms[:] = before
            return made
        self._counted += count
        if self._counted == row.size and self.readers.stages is not None:
            self.readers.stages.note(self.stage, self.job.name, row.contributions())
        return made

    @property
    @abstractmethod
    def _ready(self) -> tuple[Row, Callable[[int, int], Bytes]]:
        """The row with all its statistics found, and what makes a tile of it."""


def _named(problem: Problem, stage: str) -> Problem:
    prefix = f"stage `{stage}`: "
    if problem.what.startswith("stage `"):
        return problem
    return type(problem)(prefix + problem.what, problem.where, problem.hint)


class Fused(_Result):
    """A tensor of a stage through the fused kernels."""

    def __init__(self, stage: str, job: Job, readers: Readers, program: Program) -> None:
        super().__init__(stage, job, readers)
        self._program = program

    @cached_property
    def _ready(self) -> tuple[Row, Callable[[int, int], Bytes]]:
        from mergekit_lite.engine.cpu import prepare, tile_maker
        from mergekit_lite.engine.row import Row
        from mergekit_lite.engine.tiles import TilePool

        program, allow = self._program, self.readers.allow_nonfinite
        keep = self.readers.keep if program.is_swept else 0
        row = Row(
            self.job,
            self.readers,
            TilePool(),
            tile=self.readers.tile,
            width=program.width,
            weight_space=program.weight_space,
            keep=keep,
        )
        prepare(row, program, self._never, allow_nonfinite=allow)
        memory = np.empty(min(row.tile, row.size) * self._entry, np.uint8)
        make = tile_maker(row, program, memory)

        def tile(first: int, count: int) -> Bytes:
            row.load(first, count)
            make(first, count)
            row.check_finite(allow)
            return memory[: count * self._entry]

        return row, tile


class Chained(_Result):
    """A tensor of a stage through the torch chain."""

    def __init__(self, stage: str, job: Job, readers: Readers, plan: Plan) -> None:
        super().__init__(stage, job, readers)
        self._plan = plan

    @cached_property
    def _ready(self) -> tuple[Row, Callable[[int, int], Bytes]]:
        chain, allow = self._chain(), self.readers.allow_nonfinite
        if chain.whole:
            return chain.row, self._whole(chain)
        chain.find_statistics(self._never)
        chain.check_finite(allow)

        def tile(first: int, count: int) -> Bytes:
            made = chain.entries(first, count)
            chain.row.norms += chain.squares.tolist()
            chain.check_finite(allow)
            return made

        return chain.row, tile

    def _whole(self, chain: TorchRow) -> Callable[[int, int], Bytes]:
        """Compute the tensor and keep it for as long as it is read."""
        result = np.empty(prod(self.job.shape) * self._entry, np.uint8)

        def write(part: Bytes, offset: int) -> None:
            result[offset : offset + part.nbytes] = part

        chain.merge(write, self._never, allow_nonfinite=self.readers.allow_nonfinite)
        return lambda first, count: result[first * self._entry : (first + count) * self._entry]

    def _chain(self) -> TorchRow:
        from mergekit_lite.engine.known import Known
        from mergekit_lite.engine.shard import Worker

        worker = Worker(
            self._plan,
            self.readers,
            Options(threads=1),
            tile=self.readers.tile,
            keep=0,
            known=Known(),
            stop=self._never,
        )
        return worker.torch_row(self.job)
