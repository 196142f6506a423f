"""One row's part in the ranks of the whole model, through the fused kernels and without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.brackets import Wanted, magnitude_writer
from mergekit_lite.engine.changing import counted_here
from mergekit_lite.engine.cpu import find_statistics
from mergekit_lite.engine.kinds import WORTHWHILE, ranked, stored
from mergekit_lite.engine.program import Program, compile_job
from mergekit_lite.engine.row import Row
from mergekit_lite.engine.sharing import Counts
from mergekit_lite.engine.tallies import Counting, OrderTally, Tally
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.kernels._jit import Kernel
from mergekit_lite.kernels.chain_ranks import sample_for
from mergekit_lite.kernels.changes import changes_tile
from mergekit_lite.kernels.order import histogram, magnitudes_of_tile, refine, squares
from mergekit_lite.ops import registry
from mergekit_lite.plan.types import Job, Plan, Step

if TYPE_CHECKING:
    from mergekit_lite.engine.shard import Worker
    from mergekit_lite.sources import Model

_ODD = 0x7F800000 >> 15
"""Upper bits from which on magnitudes are infinite or no numbers."""


def ranked_here(job: Job, one: Counting) -> bool:
    """Return whether a question is about the magnitudes of one expert's delta."""
    tally = one.tally
    return (
        isinstance(tally, OrderTally)
        and registry()[job.steps[one.at].op].kind == "transform"
        and not (tally.needs.signed or tally.needs.each)
        and tally.needs.inputs is None
        and tally.needs.derived is None
    )


def program_for(plan: Plan, job: Job, counting: Sequence[Counting]) -> tuple[Job, Program] | None:
    """Return a row of just the experts that are asked about, as far as those who ask, compiled.

    None where the kernels do not know what precedes them.
    """
    specs = registry()
    last = {one.tally.question.expert: one.at for one in counting}
    steps = [
        step
        for at, step in enumerate(job.steps)
        if specs[step.op].kind == "transform" and at < last.get(step.expert, 0)
    ]
    reads = tuple(read for read in job.reads if read.source in last)
    total = Step("task_arithmetic", specs["task_arithmetic"].defaults())
    alone = replace(job, reads=reads, steps=(*steps, total))
    program = compile_job(alone, plan.seed)
    return None if program is None else (alone, program)


def kernels_for(plan: Plan, models: Mapping[str, Model], tallies: Sequence[Tally]) -> list[Kernel]:
    """Return the kernels that counting for these questions calls."""
    rows: dict[int, list[Counting]] = {}
    for tally in tallies:
        for number, at in tally.question.uses:
            one = Counting(tally, at)
            if ranked_here(plan.jobs[number], one):
                rows.setdefault(number, []).append(one)
    changes = any(
        counted_here(plan.jobs[number], Counting(tally, at))
        for tally in tallies
        for number, at in tally.question.uses
    )
    entries: Counter[Kernel] = Counter()
    for number, counting in rows.items():
        found = program_for(plan, plan.jobs[number], counting)
        if found is None:
            continue
        job, program = found
        codes, deltas = stored(job, models)
        names = [read.source for read in job.reads]
        for one in counting:
            question = one.tally.question
            expert = names.index(question.expert)
            kind = ranked(program, expert, question.order[1], codes, deltas)
            entries[sample_for(kind) if kind else magnitudes_of_tile] += prod(job.shape)
    if not entries:
        return [changes_tile] if changes else []
    wanted = {
        kernel if kernel.is_compiled or count >= WORTHWHILE else magnitudes_of_tile
        for kernel, count in entries.items()
    }
    return [histogram, refine, squares, *wanted, *([changes_tile] if changes else [])]


def count_row(worker: Worker, job: Job, program: Program, counting: Sequence[Counting]) -> None:
    """Count the bits of all magnitudes that the row's questions are about."""
    row = Row(
        job, worker.readers, worker.pool, tile=worker.tile, width=program.width,
        weight_space=False, keep=worker.keep,
    )  # fmt: skip
    for expert, position in sorted(program.of_model):
        answer = worker.known.of_transform(job, expert, position)
        program.set_answer(expert, position, answer)
    find_statistics(row, program, worker.stop)
    names = [read.source for read in job.reads]
    writers, rankings = [], []
    for one in counting:
        question = one.tally.question
        want = Wanted(names.index(question.expert), question.order[1], 0, 0)
        writers.append(magnitude_writer(row, program, want))
        if isinstance(one.tally, OrderTally):
            rankings += one.tally.rankings(1)
    counts = [Counts(ranking) for ranking in rankings]
    memory = np.empty((1, min(row.tile, max(row.size, 1))), np.uint32)
    at_once = np.zeros(1, np.int64)
    for first, count in row.tiles(worker.stop):
        part = memory[:, :count]
        for write, each in zip(writers, counts, strict=True):
            write(first, at_once, part)
            each.add(part[0])
    for each in counts:
        each.end()
    if any(each.ranking.stage == 0 and each.bins[0][_ODD:].any() for each in counts):
        _check_finite(worker, row)


def _check_finite(worker: Worker, row: Row) -> None:
    """Name the inputs of a row that hold NaN or infinity, unless that is allowed."""
    for _, count in row.tiles(worker.stop):
        for i, slot in enumerate(row.slots):
            if slot.dtype:
                begin = int(row.at[i])
                raw = row.pool.raw[begin : begin + count * DTYPE_BYTES[slot.dtype]]
                row.bad[i] += np.count_nonzero(~np.isfinite(as_float32(raw, slot.dtype)))
    row.check_finite(worker.options.allow_nonfinite)
