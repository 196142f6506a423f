"""How a patch's old base is related to the new one, from a sample of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.row import Row
from mergekit_lite.engine.tiles import TilePool, as_float32
from mergekit_lite.plan.ported import pairs_of
from mergekit_lite.plan.types import Job, Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

MOST_ROWS = 64
"""Tensors that are looked at, spread over the model."""
MOST_ENTRIES = 1 << 16
"""Entries of each that are looked at, the first ones."""
LEAST_COSINE = 0.9
"""Below it the old base and the new one are hardly versions of one model."""
LEAST_SHARE = 0.1
"""A patch below this part of how far the base has moved is likely to be lost in it."""


@dataclass(frozen=True)
class Relation:
    """What a sample says.

    Attributes:
        entries: that were looked at.
        cosine: of the old and the new base's weights.
        drift: norm of their difference.
        patch: norm of the fine-tune's difference to the old base.
    """

    entries: int
    cosine: float
    drift: float
    patch: float


def warnings_of_ported(plan: Plan, models: Mapping[str, Model]) -> list[str]:
    """Return what makes the patches of a plan doubtful; a few megabytes of each model are read.

    Args:
        plan: whose recipe may have `port_patch` with an `old_base`.
        models: its inputs, opened.
    """
    found = []
    for tuned, old in pairs_of(plan.recipe):
        seen = relation_of(plan, models, tuned, old)
        if seen is None:
            continue
        sample = f"in a sample of {seen.entries:,} entries"
        if seen.cosine < LEAST_COSINE:
            found.append(
                f"`port_patch`: `{old}` and the new base have a cosine of {seen.cosine:.2f}"
                f" {sample}; what `{tuned}` has learnt on the one need not fit the other"
            )
        if seen.patch < LEAST_SHARE * seen.drift:
            found.append(
                f"`port_patch`: what `{tuned}` has learnt (norm {seen.patch:.3g}) is small beside"
                f" how far the base has moved since (norm {seen.drift:.3g}) {sample}; it may have"
                " no effect"
            )
    return found


def relation_of(plan: Plan, models: Mapping[str, Model], tuned: str, old: str) -> Relation | None:
    """Return how old base, new base and fine-tune lie to each other; None where no row has all."""
    jobs = [
        replace(job, reads=reads)
        for job in plan.jobs
        if job.kind == "merge" and job.base is not None
        if len(reads := tuple(r for n in (tuned, old) for r in job.reads if r.source == n)) == 2
        if not any(read.zero for read in reads)
    ]
    readers, pool = Readers(models, plan.row_maps), TilePool()
    entries, sums = 0, np.zeros(5)
    try:
        for job in jobs[:: -(-len(jobs) // MOST_ROWS) or 1]:
            new, own, before = _sample(job, readers, pool)
            entries += len(new)
            apart, patch = new - before, own - before
            sums += [new @ new, before @ before, new @ before, apart @ apart, patch @ patch]
    finally:
        readers.close()
    if not entries or not np.isfinite(sums).all():  # the run itself tells where that is
        return None
    norms = float(np.sqrt(sums[0] * sums[1]))
    cosine = float(sums[2]) / norms if norms else 1.0
    return Relation(entries, cosine, float(np.sqrt(sums[3])), float(np.sqrt(sums[4])))


def _sample(job: Job, readers: Readers, pool: TilePool) -> list[NDArray[np.float64]]:
    """Return the first entries of the base and of both inputs."""
    row = Row(job, readers, pool, tile=MOST_ENTRIES, weight_space=True)
    count = min(row.size, MOST_ENTRIES)
    row.load(0, count)
    found = []
    for at, slot in zip(row.at.tolist(), row.slots, strict=True):
        raw = pool.raw[at : at + count * DTYPE_BYTES[slot.dtype]]
        found.append(as_float32(raw, slot.dtype).astype(np.float64))
    return found
