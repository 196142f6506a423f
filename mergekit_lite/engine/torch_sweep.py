"""One row's part in the statistics of the whole model, through the torch chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_lite.engine.torch_statistics import asked_of

if TYPE_CHECKING:
    from mergekit_lite.engine.shard import Worker
    from mergekit_lite.engine.tallies import Counting
    from mergekit_lite.plan.types import Job


def count_in_torch(worker: Worker, job: Job, counting: Sequence[Counting]) -> None:
    """Let every tally take in a row's tiles, after finding what the row itself asks upstream."""
    chain = worker.torch_row(job)
    stages = chain.stages()
    askings = {ask.at: (number, ask) for number, stage in enumerate(stages) for ask in stage}
    chain.find_statistics(worker.stop, max(askings[one.at][0] for one in counting))
    parts = [(one, one.tally.row(job.layer)) for one in counting]
    for tile in chain.tiles(worker.stop):
        for one, part in parts:
            ask = askings[one.at][1]
            part.add(asked_of(chain, ask, one.tally.question.index, tile), tile.first)
    chain.check_finite(worker.options.allow_nonfinite)
    for _, part in parts:
        part.end()
