"""Computes rows into shard files; everything one worker does between a plan and its bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.checkpoint.names import stack_of
from mergekit_lite.checkpoint.writer import ShardWriter
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.following import FollowingHash
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.joined import joined
from mergekit_lite.engine.known import Known
from mergekit_lite.engine.options import Contribution, Device, Options, ShardDone
from mergekit_lite.kernels import enabled
from mergekit_lite.ops._chain import space_of, split
from mergekit_lite.plan.runs import runs_of
from mergekit_lite.plan.stack_layers import stack_layers
from mergekit_lite.plan.types import GATE, Job, Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.engine.lanes import Lane
    from mergekit_lite.engine.row import Row, Write
    from mergekit_lite.engine.tiles import TilePool
    from mergekit_lite.engine.torch_row import TorchRow
    from mergekit_lite.sources import Model

COPIED = 16 << 20
"""Bytes that are copied in one go."""

Emit = Callable[[Event], None]


class OpenShard:
    """A shard file under construction: its writer and what its finished rows have said.

    Args:
        plan: the table.
        number: which shard.
        jobs: how many rows it has.
        folder: where the file is made.
        grown: told the number when there is something more to hash, from any thread.
    """

    def __init__(
        self, plan: Plan, number: int, jobs: int, folder: Path, grown: Callable[[int], None]
    ) -> None:
        self.number = number
        self._grown = grown
        self.left = jobs
        self.inputs: dict[str, Contribution] = {}
        self.bytes_read = 0
        self._shard = plan.shards[number]
        self._folder = folder
        self._lock = threading.Lock()
        self.hash = FollowingHash(folder / f"{self._shard.file}.partial", self._on_the_way)

    @cached_property
    def _writer(self) -> ShardWriter:
        shard = self._shard
        path = self._folder / f"{shard.file}.partial"
        path.parent.mkdir(exist_ok=True)
        writer = ShardWriter(path, self._folder / shard.file, shard.header, shard.nbytes)
        self.hash.wrote(0, 8 + len(shard.header.encode()))
        return writer

    @property
    def writer(self) -> ShardWriter:
        """The shard's file, created by the first row that needs it."""
        with self._lock:
            return self._writer

    def _on_the_way(self, start: int, nbytes: int) -> None:
        self._writer.begin_sync(start, nbytes)

    def wrote(self, start: int, nbytes: int) -> None:
        """Note that bytes [start, start + nbytes) of the file are there."""
        self.hash.wrote(start, nbytes)
        self._grown(self.number)

    def row_done(self, parts: Mapping[str, Contribution], bytes_read: int) -> bool:
        """Add what a finished row has said; return whether it was the last one."""
        with self._lock:
            for name, part in parts.items():
                self.inputs[name] = self.inputs.get(name, Contribution()) + part
            self.bytes_read += bytes_read
            self.left -= 1
            return self.left == 0

    def close(self) -> ShardDone:
        """Put the file on the disk under its final name and finish its checksum."""
        writer = self.writer
        # The disk and the checksum each take their time; neither waits for the other.
        syncing = threading.Thread(target=writer.sync, name="sync")
        syncing.start()
        digest = self.hash.hexdigest(self._shard.nbytes)
        syncing.join()
        writer.finish()
        return ShardDone(
            self.number,
            self._shard.file,
            self._shard.nbytes,
            digest,
            # Rows finish in any order, so sums are put in one that does not depend on it.
            dict(sorted(self.inputs.items())),
            self.bytes_read,
        )

    def abandon(self) -> None:
        """Close the unfinished file."""
        self.hash.close()
        if "_writer" in self.__dict__:
            self._writer.close()


class Worker:
    """Runs rows one after the other with memory of its own.

    Args:
        plan: the table.
        readers: open weight files, shared by all workers.
        options: how to run.
        tile: entries of a tile.
        keep: bytes of inputs that may be kept between the sweeps of a row.
        known: whole-model statistics.
        stop: set when the run has to end.
        number: of this worker, from 0.
    """

    def __init__(
        self,
        plan: Plan,
        readers: Readers,
        options: Options,
        *,
        tile: int,
        keep: int,
        known: Known,
        stop: threading.Event,
        number: int = 0,
    ) -> None:
        self.plan, self.readers, self.options = plan, readers, options
        self.tile, self.known, self.stop, self.number = tile, known, stop, number
        self.keep = keep
        self.device = chosen_device(options.device)

    @cached_property
    def pool(self) -> TilePool:
        """This worker's memory, made when the first row needs more than copying."""
        from mergekit_lite.engine.tiles import TilePool

        return TilePool()

    @cached_property
    def lane(self) -> Lane:
        """This worker's way to the device, made when the first row needs torch."""
        from mergekit_lite.engine.lanes import lane_for

        return lane_for(self.device, self.number)

    def run(self, job: Job, shard: OpenShard) -> bool:
        """Write one row into its shard; return whether that completed the shard's rows."""
        if job.kind == "copy":
            return self._copy(job, shard)
        writer = shard.writer

        def write(part: NDArray[np.uint8], offset: int) -> None:
            writer.write(part, job.start + offset)
            self.readers.traffic.add_written(part.nbytes)
            shard.wrote(job.start + offset, part.nbytes)

        before = self.readers.traffic.read_here()
        if job.coding is not None:
            row = self._coded(job, shard)
            read = self.readers.traffic.read_here() - before
            return self._done(job, shard, row.contributions(), read)
        if job.fusion is not None:
            part, given = self._factor(job)
            write(part, 0)
            return self._done(job, shard, given, self.readers.traffic.read_here() - before)
        row = self.merge(job, write)
        read = self.readers.traffic.read_here() - before
        return self._done(job, shard, row.contributions(), read)

    def merge(self, job: Job, write: Write) -> Row:
        """Compute a row that is no copy; hand its bytes to `write`, with where they begin."""
        job = joined(job)
        row = self._fused(job, write) if enabled() and self.device == "cpu" else None
        return row or self._torch(job, write)

    def _coded(self, job: Job, shard: OpenShard) -> Row:
        """Write the codes of a row, which is computed twice where the first needs all entries."""
        from mergekit_lite.engine.coding import Coder

        writer = shard.writer

        def write(data: NDArray[np.uint8], start: int) -> None:
            writer.write(data, start)
            self.readers.traffic.add_written(data.nbytes)
            shard.wrote(start, data.nbytes)

        coder = Coder(job, write)
        row = self.merge(job, coder.look) if coder.looks else None
        if row is None or not coder.complete:
            row = self.merge(job, coder.take)
        coder.finish()
        return row

    def _done(
        self, job: Job, shard: OpenShard, parts: Mapping[str, Contribution], bytes_read: int
    ) -> bool:
        """Hand in a finished row; return whether it was the last one of its shard."""
        stages = self.readers.stages
        inside = stages.of_row(job.name) if stages is not None else {}
        return shard.row_done({**parts, **inside}, bytes_read)

    def _factor(self, job: Job) -> tuple[NDArray[np.uint8], dict[str, Contribution]]:
        """Return one factor of an adapter in place of a model."""
        from mergekit_lite.engine.fuse import fused

        return fused(
            job,
            self.readers,
            self.lane,
            seed=self.plan.seed,
            layers=self.plan.layers,
            allow_nonfinite=self.options.allow_nonfinite,
        )

    def _copy(self, job: Job, shard: OpenShard) -> bool:
        read, at = job.reads[0], job.start
        width = DTYPE_BYTES[job.dtype]
        sources = set()
        for run in runs_of(read, prod(job.shape)):
            readers, source, info = self.readers.located(run.source, run.name)
            start = info.start + run.first * width
            end = start + run.entries * width
            reader = readers.reader(source, info.file)
            # In pieces, so that what follows the writing need not wait for a whole embedding.
            for position in range(start, end, COPIED):
                nbytes = min(COPIED, end - position)
                shard.writer.copy_from(reader, position, at, nbytes)
                shard.wrote(at, nbytes)
                at += nbytes
                self.readers.traffic.add_read(nbytes)
                self.readers.traffic.add_written(nbytes)
            sources.add(run.source)
        parts = {name: Contribution(matched=1) for name in sorted(sources - {"base", GATE})}
        return self._done(job, shard, parts, at - job.start)

    def _fused(self, job: Job, write: Write) -> Row | None:
        # numba takes half a second to import, which a run that only copies need not pay.
        from mergekit_lite.engine.cpu import merge_row
        from mergekit_lite.engine.program import compile_job
        from mergekit_lite.engine.row import Row

        program = compile_job(job, self.plan.seed)
        if program is None:
            return None
        for expert, position in sorted(program.of_model):
            answer = self.known.of_transform(job, expert, position)
            program.set_answer(expert, position, answer)
        if program.asks_model:
            program.sums = self.known.sums(job)
        row = Row(
            job,
            self.readers,
            self.pool,
            tile=self.tile,
            width=program.width,
            weight_space=program.weight_space,
            keep=self.keep if program.is_swept else 0,
        )
        merge_row(row, program, write, self.stop, allow_nonfinite=self.options.allow_nonfinite)
        return row

    def _torch(self, job: Job, write: Write) -> Row:
        chain = self.torch_row(job)
        chain.merge(write, self.stop, allow_nonfinite=self.options.allow_nonfinite)
        return chain.row

    @cached_property
    def _layers(self) -> Mapping[str, int]:
        return stack_layers(self.plan)

    def torch_row(self, job: Job) -> TorchRow:
        """Return a row's chain in torch, with all whole-model answers that are known."""
        from mergekit_lite.engine.row import Row, whole_width
        from mergekit_lite.engine.statistic_files import calibration_of
        from mergekit_lite.engine.torch_row import TorchRow

        lane = self.lane
        row = Row(
            job,
            self.readers,
            lane.sides[0],
            tile=self.tile,
            width=whole_width(job),
            weight_space=space_of(job.steps[split(job.steps)[1]]) == "weight",
        )
        return TorchRow(
            row,
            lane,
            seed=self.plan.seed,
            layers=self._layers.get(stack_of(job.name), self.plan.layers),
            known=self.known.of_row(job),
            calibration=calibration_of(job, Path(self.plan.folder)),
        )


def chosen_device(device: Device) -> Device:
    """Return `cpu` or `cuda` for what the user asked.

    Raises:
        ResourceError: `cuda` was asked for and torch finds no GPU.
    """
    if device == "cpu":
        return "cpu"
    import torch

    from mergekit_lite.errors import ResourceError

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise ResourceError(
            "no GPU was found", hint="install a CUDA build of torch, or use --device cpu"
        )
    return "cpu"


def write_shard(
    plan: Plan,
    models: Mapping[str, Model],
    shard: int,
    folder: Path,
    options: Options,
    emit: Emit,
) -> ShardDone:
    """Compute one shard, from its first byte to its final name, in this thread.

    This is all that another machine needs to call: a plan, the models and a folder.
    """
    from mergekit_lite.engine.local import LocalExecutor

    done: Sequence[ShardDone] = list(
        LocalExecutor().run(plan, models, [shard], folder, options, emit)
    )
    return done[0]
