"""What `ramplus` waits for: counts of the changes that experts share and that they have alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mergekit_lite.engine.program import Program
from mergekit_lite.engine.row import Row
from mergekit_lite.engine.tallies import Counting, TotalsTally
from mergekit_lite.kernels.changes import changes_tile
from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._place import Sums
from mergekit_lite.ops._statistics import OUTSIDE
from mergekit_lite.ops.combine.ramplus import factors
from mergekit_lite.plan.types import Job

if TYPE_CHECKING:
    from mergekit_lite.engine.shard import Worker


def find_changes(row: Row, program: Program, stop: threading.Event) -> None:
    """Enter what each expert's own changes are multiplied by, which are the combine's weights."""
    params, experts = program.params, len(row.job.reads)
    sums = program.sums or changes_of(row, float(params["epsilon"]), stop)
    scales = factors(sums, experts, float(params["r"]), float(params["alpha"]))
    program.weights = np.array(scales, np.float32)


def changes_of(row: Row, epsilon: float, stop: threading.Event) -> Sums:
    """Return how many changes each expert shares, and then how many each has alone."""
    counts = np.zeros((len(row.job.reads), 2), np.int64)
    count = changes_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, row.bad, row.work, single(epsilon), counts
    )
    for _, n in row.tiles(stop, row.stride):
        count(n)
    return Sums(absolute=tuple(map(float, counts.T.reshape(-1).tolist())))


def counted_here(job: Job, one: Counting) -> bool:
    """Return whether a question of the whole model is about such changes, as they are stored."""
    return job.steps[one.at].op == "ramplus" and one.at == 0


def count_changes(worker: Worker, job: Job, counting: Sequence[Counting]) -> None:
    """Count a row's changes for the whole model, without torch."""
    for one in counting:
        row = Row(job, worker.readers, worker.pool, tile=worker.tile, weight_space=False)
        epsilon = float(one.tally.question.params["epsilon"])
        found = changes_of(row, epsilon, worker.stop).absolute
        row.check_finite(worker.options.allow_nonfinite)
        if isinstance(one.tally, TotalsTally):
            blocks = {("absolute", i, i): [value] for i, value in enumerate(found)}
            one.tally.add(OUTSIDE, blocks, len(found))
