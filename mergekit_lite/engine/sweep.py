"""Statistics of the whole model, found in sweeps over all rows before the first is written."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.inputs import Readers, TilePool, as_float32
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.ops import registry
from mergekit_lite.ops._place import Cut
from mergekit_lite.ops._statistics import EVERY, Order
from mergekit_lite.plan.types import Job, Plan, Step

if TYPE_CHECKING:
    from mergekit_lite.engine.row import Row

STATISTICS = "statistics.json"
UPPER_BITS = 15  # the low bits that the first histogram leaves to the second


def key_of(step: Step) -> str:
    """Return what a whole-model statistic is known by: the op, its parameters, the expert."""
    return json.dumps([step.op, dict(step.params), step.expert], sort_keys=True)


def _of_model(step: Step) -> Order | None:
    spec = registry()[step.op]
    needs = spec.needs
    if isinstance(needs, Order) and needs.of_model({**spec.defaults(), **step.params}):
        return needs
    return None


@dataclass
class Known:
    """Whole-model cuts by `key_of` their step."""

    table: Mapping[str, tuple[Cut, ...]] = field(default_factory=dict)

    def cuts(self, job: Job, expert: int, position: int) -> tuple[Cut, ...]:
        """Return the cuts of an expert's transform at `position` of its own chain."""
        name = job.reads[expert].source
        return self.table[key_of([s for s in job.steps if s.expert == name][position])]

    def of_row(self, job: Job) -> dict[tuple[int, str], tuple[Cut, ...]]:
        """Return the cuts of a row by (position in its steps, expert)."""
        return {
            (at, step.expert): self.table[key_of(step)]
            for at, step in enumerate(job.steps)
            if _of_model(step)
        }


def find_known(plan: Plan, readers: Readers, folder: Path, tile: int) -> Known:
    """Return all whole-model statistics of a plan, from the folder or by sweeping the inputs.

    They are kept in the unfinished folder, so a resumed run and other machines find them there.
    """
    wanted: dict[str, list[tuple[Job, Step]]] = {}
    for job in plan.jobs:
        for step in job.steps:
            if _of_model(step):
                wanted.setdefault(key_of(step), []).append((job, step))
    if not wanted:
        return Known()
    known = load_known(folder)
    if set(known.table) == set(wanted):
        return known
    path = folder / STATISTICS
    table = {key: _sweep(uses, readers, tile) for key, uses in wanted.items()}
    text = json.dumps({k: [[c.threshold, c.until] for c in cuts] for k, cuts in table.items()})
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
    return Known(table)


def load_known(folder: Path) -> Known:
    """Return the whole-model statistics that a run has left in its folder."""
    try:
        data = json.loads((folder / STATISTICS).read_text())
        return Known({k: tuple(Cut(t, int(u)) for t, u in cuts) for k, cuts in data.items()})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return Known()  # none yet, or torn when the machine went down


def _sweep(uses: list[tuple[Job, Step]], readers: Readers, tile: int) -> tuple[Cut, ...]:
    """Rank the magnitudes of one expert's delta over all rows: bits 30..15, then 14..0."""
    from mergekit_lite.engine.ranks import bin_of

    step = uses[0][1]
    needs = _of_model(step)
    if needs is None:
        return ()
    spec = registry()[step.op]
    size = sum(prod(job.shape) for job, _ in uses)
    ranks = [min(r, size) for r in needs.ranks({**spec.defaults(), **step.params}, size)]
    upper = np.zeros(1 << 16, np.int64)
    for bits in _bits(uses, readers, tile):
        upper += np.bincount(bits >> UPPER_BITS, minlength=1 << 16)
    places = [bin_of(upper, rank) for rank in ranks]
    lower = {digit: np.zeros(1 << UPPER_BITS, np.int64) for digit, _ in places}
    for bits in _bits(uses, readers, tile):
        digits = bits >> UPPER_BITS
        for digit, bins in lower.items():
            inside = bits[digits == digit] & ((1 << UPPER_BITS) - 1)
            bins += np.bincount(inside, minlength=1 << UPPER_BITS)
    cuts = []
    for digit, rank in places:
        rest, _ = bin_of(lower[digit], rank)
        threshold = np.uint32((digit << UPPER_BITS) | rest).view(np.float32)
        cuts.append(Cut(float(threshold), EVERY))
    return tuple(cuts)


def _bits(
    uses: list[tuple[Job, Step]], readers: Readers, tile: int
) -> Iterator[NDArray[np.uint32]]:
    """Yield the magnitude bits of the expert's delta, tile by tile over all rows."""
    from mergekit_lite.engine.row import Row

    pool, never = TilePool(), threading.Event()
    for job, step in uses:
        if next(s for s in job.steps if s.expert == step.expert) != step:
            raise RecipeError(
                f"`{step.op}` ranks the whole model after another transform of `{step.expert}`",
                job.name,
                f"put `{step.op}` first: a ranking of the whole model reads the inputs as they are",
            )
        reads = tuple(read for read in job.reads if read.source == step.expert)
        alone = Job(job.name, job.dtype, job.shape, job.shard, job.start, "merge", reads, job.base)
        row = Row(alone, readers, pool, tile=tile, weight_space=False)
        for _, count in row.tiles(never):
            base, value = (_values(row, i, count) for i in (0, 1))
            delta = value if row.is_delta[1] else value - base
            if not np.isfinite(delta).all():
                raise DataError("NaN or infinity in an input", f"{step.expert}: {job.name}")
            yield np.abs(delta).view(np.uint32)


def _values(row: Row, i: int, count: int) -> NDArray[np.float32]:
    dtype = row.slots[i].dtype
    if not dtype:
        return np.zeros(count, np.float32)
    width = {"F64": 8, "F32": 4}.get(dtype, 2)
    begin = int(row.at[i])
    return as_float32(row.pool.raw[begin : begin + count * width], dtype)
