"""Answers what a plan asks of the whole model, in sweeps over all rows before the first is written.

Questions of one level share their sweeps; all workers take part. Answers are kept in the
unfinished folder, for a resumed run and other machines, and in the cache, for later runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_lite.engine.events import TICK_SECONDS, Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.known import Known, load_known, save_known
from mergekit_lite.engine.memory import MemoryGate, tile_for
from mergekit_lite.engine.options import Options
from mergekit_lite.engine.shard import Emit, Worker, chosen_device
from mergekit_lite.engine.tallies import Counting, Tally, tally_for
from mergekit_lite.engine.warming import compile_missing
from mergekit_lite.errors import Interrupted
from mergekit_lite.kernels import enabled
from mergekit_lite.ops._statistics import Answer
from mergekit_lite.plan.estimate import sweep_text
from mergekit_lite.plan.questions import questions_of
from mergekit_lite.plan.remembered import Remembered, digest_of
from mergekit_lite.plan.sweeps import ModelSweep, sweep_of
from mergekit_lite.plan.types import Job, Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


def sweep_model(
    plan: Plan, models: Mapping[str, Model], folder: Path, options: Options, emit: Emit
) -> None:
    """Find all whole-model statistics of a plan and leave them in the run's folder.

    Args:
        plan: the table of rows.
        models: its inputs, opened.
        folder: working folder of the run; what an earlier run has left there is not found again.
        options: how to run.
        emit: told of every sweep.

    Raises:
        DataError: an input holds NaN or infinity.
        Interrupted: the run was stopped.
    """

    def save(known: Known) -> None:
        save_known(known, folder)

    if questions_of(plan):
        answers_of(plan, models, options, emit, left=load_known(folder), save=save)


def answers_of(
    plan: Plan,
    models: Mapping[str, Model],
    options: Options,
    emit: Emit = lambda event: None,
    *,
    left: Known | None = None,
    save: Callable[[Known], None] = lambda known: None,
) -> Known:
    """Return all whole-model statistics of a plan, from earlier runs or by sweeping the inputs.

    Args:
        plan, models, options, emit: as `sweep_model` takes them.
        left: what is known already.
        save: told of all that is known after every level.
    """
    questions = questions_of(plan)
    known = left.table if left else {}
    table = {q.key: known[q.key] for q in questions if q.key in known}
    table |= {q.key: q.unasked for q in questions if not q.is_asked}
    if len(table) == len(questions):
        save(Known(table))
        return Known(table)
    cache = Remembered()
    for level in sorted({q.level for q in questions if q.key not in table}):
        asked = [q for q in questions if q.level == level and q.key not in table]
        digests = {q.key: digest_of(plan, q, table) for q in asked}
        for question in asked:
            answer = cache.get(digests[question.key])
            if answer is not None:
                table[question.key] = answer
        asked = [q for q in asked if q.key not in table]
        if asked:
            sweep = sweep_of(plan, asked)
            emit(Event("note", text=sweep_text(sweep)))
            tallies = [tally_for(question) for question in asked]
            _compile(plan, models, tallies, options, emit)
            crew = _Sweep(plan, models, options, Known(dict(table)), sweep, emit)
            found = crew.answers(tallies)
            for key, answer in found.items():
                cache.put(digests[key], answer)
            table |= found
        save(Known(table))
    cache.save()
    return Known(table)


def _compile(
    plan: Plan, models: Mapping[str, Model], tallies: Sequence[Tally], options: Options, emit: Emit
) -> None:
    if enabled() and chosen_device(options.device) == "cpu":
        from mergekit_lite.engine.fused_sweep import kernels_for

        compile_missing(kernels_for(plan, models, tallies), options, emit)


class _Sweep:
    """The workers of the sweeps of one level."""

    def __init__(
        self,
        plan: Plan,
        models: Mapping[str, Model],
        options: Options,
        known: Known,
        sweep: ModelSweep,
        emit: Emit,
    ) -> None:
        self.plan, self.options, self.known = plan, options, known
        self.sweep, self.emit = sweep, emit
        self.began = self.told = time.monotonic()
        self.stop = threading.Event()
        self.readers = Readers(models, plan.row_maps)
        self.tile = tile_for(plan, options)
        self.gate = MemoryGate(plan, options)
        self.local = threading.local()
        self.numbers = count()

    def answers(self, tallies: Sequence[Tally]) -> dict[str, Answer]:
        """Return the answers by the questions' keys."""
        pending = list(tallies)
        self._tell("")
        try:
            while pending:
                self._pass(pending)
                pending = [tally for tally in pending if tally.next()]
            self._tell("")
        finally:
            self.readers.close()
        return {tally.question.key: tally.answer() for tally in tallies}

    def _pass(self, tallies: Sequence[Tally]) -> None:
        rows: dict[int, list[Counting]] = {}
        for tally in tallies:
            for number, at in tally.question.uses:
                rows.setdefault(number, []).append(Counting(tally, at))
        workers = min(self.options.workers, len(rows))
        pool = ThreadPoolExecutor(workers, "sweep")
        waiting = iter(sorted(rows))
        running: dict[Future[None], Job] = {}
        try:
            while True:
                for number in islice(waiting, 2 * workers - len(running)):
                    job = self.plan.jobs[number]
                    running[pool.submit(self._row, job, rows[number])] = job
                if not running:
                    break
                for future in wait(running, TICK_SECONDS, FIRST_COMPLETED).done:
                    del running[future]
                    future.result()
                if running and time.monotonic() >= self.told + TICK_SECONDS:
                    self._tell(next(iter(running.values())).name)
        except BaseException:
            self.stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _tell(self, name: str) -> None:
        self.told = time.monotonic()
        self.emit(
            Event(
                "sweep",
                bytes_read=self.readers.traffic.read,
                bytes_total=self.sweep.read_bytes,
                name=name,
                text=", ".join(self.sweep.ops),
                seconds=self.told - self.began,
            )
        )

    def _row(self, job: Job, counting: Sequence[Counting]) -> None:
        if self.stop.is_set():
            raise Interrupted("stopped")
        worker = getattr(self.local, "worker", None)
        if worker is None:
            worker = self.local.worker = Worker(
                self.plan, self.readers, self.options, tile=self.tile, keep=0,
                known=self.known, stop=self.stop, number=next(self.numbers),
            )  # fmt: skip
        with self.gate.room_for(job):
            for look in _ways(worker, job, counting):
                look()


def _ways(worker: Worker, job: Job, counting: Sequence[Counting]) -> list[Callable[[], None]]:
    """Return how a row is looked at: by the fused kernels what they know, the rest by torch."""
    fused: Sequence[Counting] = ()
    ways: list[Callable[[], None]] = []
    if enabled() and worker.device == "cpu":
        from mergekit_lite.engine.changing import count_changes, counted_here
        from mergekit_lite.engine.fused_sweep import count_row, program_for, ranked_here

        fused = [one for one in counting if ranked_here(job, one)]
        row = program_for(worker.plan, job, fused) if fused else None
        if row is not None:
            ways.append(partial(count_row, worker, *row, fused))
        else:
            fused = ()
        changes = [one for one in counting if counted_here(job, one)]
        if changes:
            ways.append(partial(count_changes, worker, job, changes))
            fused = [*fused, *changes]
    rest = [one for one in counting if one not in fused]
    if rest:
        from mergekit_lite.engine.torch_sweep import count_in_torch

        ways.append(partial(count_in_torch, worker, job, rest))
    return ways
