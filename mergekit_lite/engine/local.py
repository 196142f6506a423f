"""Executes a plan on this machine: workers take rows in order, shards close behind them."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.engine.events import TICK_SECONDS, Event
from mergekit_lite.engine.executor import executor_named
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.journal import Journal
from mergekit_lite.engine.known import load_known, told
from mergekit_lite.engine.memory import MemoryGate, keep_for, tile_for
from mergekit_lite.engine.options import Contribution, Options, Report, ShardDone
from mergekit_lite.engine.shard import Emit, OpenShard, Worker, chosen_device
from mergekit_lite.engine.stage_parts import StageParts
from mergekit_lite.engine.warming import compile_for
from mergekit_lite.errors import DataError, Interrupted, ResourceError
from mergekit_lite.plan.layout import job_bytes
from mergekit_lite.plan.questions import questions_of
from mergekit_lite.plan.row_memory import TILE_ENTRIES
from mergekit_lite.plan.types import Job, Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


def execute(
    plan: Plan,
    models: Mapping[str, Model],
    folder: Path,
    options: Options,
    emit: Emit,
) -> Report:
    """Write every shard of `plan` into `folder`, taking up what an earlier run has finished.

    Args:
        plan: the table of rows.
        models: the plan's inputs by name, opened.
        folder: working folder; made if it is not there.
        options: how to run.
        emit: called with events, from any thread.

    Raises:
        RecipeError: the folder holds an unfinished run of another plan.
        DataError: an input or a result is corrupt or not finite; the folder is removed.
        ResourceError: the disk is full; the folder stays and can be resumed.
        Interrupted: the run was stopped; the folder stays and can be resumed.
    """
    began = time.monotonic()
    options = replace(options, device=chosen_device(options.device))
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder, plan)
    done = {shard.shard: shard for shard in journal.resume()}
    left = [number for number in range(len(plan.shards)) if number not in done]
    if done:
        text = f"{len(done)} of {len(plan.shards)} shards were done and are intact"
        emit(Event("note", text=text, shards=len(plan.shards)))
    resumed = set(done)
    try:
        if left and questions_of(plan):
            from mergekit_lite.engine.sweep import sweep_model  # with numpy

            sweep_model(plan, models, folder, options, emit)
        executor = executor_named(options.executor)
        for shard in executor.run(plan, models, left, folder, options, emit):
            journal.add(shard)
            done[shard.shard] = shard
    except DataError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped with {len(done)} of {len(plan.shards)} shards done",
            hint="run the same command again to resume",
        ) from None
    found = told(plan, load_known(folder))
    return _report(plan, [done[n] for n in sorted(done)], resumed, time.monotonic() - began, found)


def _report(
    plan: Plan,
    shards: Sequence[ShardDone],
    resumed: set[int],
    seconds: float,
    found: Mapping[str, Any],
) -> Report:
    total: dict[str, Contribution] = {name: Contribution() for name in plan.inputs}
    for shard in shards:
        for name, part in shard.inputs.items():
            total[name] = total.get(name, Contribution()) + part
    fresh = [shard for shard in shards if shard.shard not in resumed]
    return Report(
        shards={shard.file: (shard.nbytes, shard.sha256) for shard in shards},
        inputs={name: part.report() for name, part in total.items() if name != "base"},
        seconds=seconds,
        bytes_read=sum(shard.bytes_read for shard in fresh),
        bytes_written=sum(shard.nbytes for shard in fresh),
        resumed_shards=len(resumed),
        found=found,
    )


class LocalExecutor:
    """Threads of this process: numba and the file calls release the interpreter lock."""

    def run(
        self,
        plan: Plan,
        models: Mapping[str, Model],
        shards: Sequence[int],
        folder: Path,
        options: Options,
        emit: Emit,
    ) -> Iterator[ShardDone]:
        """Yield each shard once its file is complete; see `Executor`."""
        if not shards:
            return
        crew = _Crew(plan, models, shards, folder, options, emit)
        try:
            yield from crew.work()
        except (KeyboardInterrupt, ResourceError):
            crew.dismiss()
            # What was being put on the disk has been waited for, and need not be made again.
            yield from crew.closed()
            raise
        finally:
            crew.dismiss()


class _Crew:
    """The workers of one call, the rows they have in hand and the shards they have open."""

    def __init__(
        self,
        plan: Plan,
        models: Mapping[str, Model],
        shards: Sequence[int],
        folder: Path,
        options: Options,
        emit: Emit,
    ) -> None:
        self.plan, self.models, self.options, self.emit = plan, models, options, emit
        self.stop = threading.Event()
        self.compiled = threading.Event()
        self.known = load_known(folder)
        self.tile = tile_for(plan, options)
        self.keep = keep_for(plan, options)
        self.readers = Readers(
            models,
            plan.row_maps,
            tile=min(self.tile, TILE_ENTRIES),
            keep=self.keep,
            allow_nonfinite=options.allow_nonfinite,
            stages=StageParts(plan) if plan.stages else None,
        )
        self.gate = MemoryGate(plan, options)
        wanted = set(shards)
        self.jobs = [job for job in plan.jobs if job.shard in wanted]
        counts = {number: 0 for number in shards}
        for job in self.jobs:
            counts[job.shard] += 1
        self.open = {
            n: OpenShard(plan, n, rows, folder, self._follow) for n, rows in counts.items()
        }
        self.workers = min(options.workers, max(len(self.jobs), 1))
        self.rows = ThreadPoolExecutor(self.workers, thread_name_prefix="row")
        # One thread puts closed shards on the disk while the next ones are computed.
        self.closing = ThreadPoolExecutor(1, thread_name_prefix="close")
        self.local = threading.local()
        self.in_closing: set[Future[ShardDone]] = set()
        self.numbers = count()
        self.following: Future[None] | None = None
        self.began = self.told = time.monotonic()
        self.total = sum(job_bytes(job) for job in self.jobs)

    def work(self) -> Iterator[ShardDone]:
        """Hand out rows in order, a few ahead of the workers, and yield shards as they close."""
        waiting = iter(self.jobs)
        running: dict[Future[bool], Job] = {}
        closing = self.in_closing
        closing.update(self._close(n) for n, shard in self.open.items() if shard.left == 0)
        self._tell("start")
        exhausted = False
        # What is only copied need not wait for kernels, nor for numpy.
        for early in islice(waiting, 2 * self.workers):
            running[self.rows.submit(self._row, early)] = early
        compile_for(self.plan, self.models, self.options, self.emit)
        self.compiled.set()
        while not exhausted or running or closing:
            while not exhausted and len(running) < 2 * self.workers:
                job = next(waiting, None)
                exhausted = job is None
                if job is not None:
                    running[self.rows.submit(self._row, job)] = job
            pending: list[Future[Any]] = [*running, *closing]
            ready, _ = wait(pending, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
            for future in ready:
                if future in closing:
                    closing.discard(future)
                    shard: ShardDone = future.result()
                    yield shard
                    # Told last: who is told may rely on its line in the journal.
                    self._tell("shard", shard.shard, shard.file)
                    continue
                job = running.pop(future)
                if future.result():
                    closing.add(self._close(job.shard))
            if running and time.monotonic() >= self.told + TICK_SECONDS:
                self.told = time.monotonic()
                first = next(iter(running.values()))
                self._tell("progress", first.shard, first.name)
        self._tell("done")

    def closed(self) -> Iterator[ShardDone]:
        """Yield the shards that became complete while the threads were being stopped."""
        for future in self.in_closing:
            if future.done() and not future.cancelled() and future.exception() is None:
                yield future.result()

    def dismiss(self) -> None:
        """Stop all threads, close all files."""
        self.stop.set()
        self.compiled.set()
        for pool in (self.rows, self.closing):
            _shut_down(pool)
        for shard in self.open.values():
            shard.abandon()
        self.readers.close()
        if "mergekit_lite.engine.lanes" in sys.modules:
            from mergekit_lite.engine.lanes import restore_threads

            restore_threads()

    def _row(self, job: Job) -> bool:
        if job.kind != "copy":
            self.compiled.wait()
        if self.stop.is_set():
            raise Interrupted("stopped")
        worker = getattr(self.local, "worker", None)
        if worker is None:
            worker = self.local.worker = Worker(
                self.plan,
                self.readers,
                self.options,
                tile=self.tile,
                keep=self.keep,
                known=self.known,
                stop=self.stop,
                number=next(self.numbers),
            )
        with self.gate.room_for(job):
            return bool(worker.run(job, self.open[job.shard]))

    def _close(self, number: int) -> Future[ShardDone]:
        return self.closing.submit(self.open[number].close)

    def _follow(self, number: int) -> None:
        """Let the closing thread hash what has been written, unless it has been told already."""
        if self.following is None or self.following.done():
            # A second one, told by another thread just now, would find nothing left to do.
            with suppress(RuntimeError):  # the threads are being stopped
                self.following = self.closing.submit(self.open[number].hash.follow)

    def _tell(self, kind: str, shard: int = -1, name: str = "") -> None:
        self.emit(
            Event(
                kind,  # type: ignore[arg-type]
                bytes_read=self.readers.traffic.read,
                bytes_written=self.readers.traffic.written,
                bytes_total=self.total,
                shard=shard + 1,
                shards=len(self.plan.shards),
                name=name,
                seconds=time.monotonic() - self.began,
            )
        )


def _shut_down(pool: ThreadPoolExecutor) -> None:
    """Wait for the threads of a pool; a second Ctrl-C must not leave one at work on open files."""
    while True:
        try:
            pool.shutdown(wait=True, cancel_futures=True)
            return
        except KeyboardInterrupt:
            continue
