"""Measures the task vectors of a recipe in one streaming sweep over its models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mergekit_lite.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, role_of
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.known import Known
from mergekit_lite.engine.lanes import HostLane
from mergekit_lite.engine.options import Options
from mergekit_lite.engine.row import Row, whole_width
from mergekit_lite.engine.sweep import answers_of
from mergekit_lite.engine.tiles import TilePool, as_float32
from mergekit_lite.engine.torch_row import TorchRow
from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import get
from mergekit_lite.ops._chain import split
from mergekit_lite.plan.build import build
from mergekit_lite.plan.types import Job, Plan, Step
from mergekit_lite.recipe.schema import Recipe, RecipeStep
from mergekit_lite.report.vectors import Group, Sums, Touched, Vectors, Votes

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

TILE = 1 << 18
PART = 1 << 18
"""Entries counted at once: counts in fp32 are exact far beyond that."""


def measure(
    recipe: Recipe,
    plan: Plan,
    models: Mapping[str, Model],
    *,
    threads: int = 1,
    progress: Callable[[int], Any] | None = None,
) -> Vectors:
    """Return how the task vectors of a recipe's experts compare, whole, by layer and by role.

    Args:
        recipe: whose experts are compared; its transforms decide what is kept.
        plan: of that recipe.
        models: its inputs by name.
        threads: rows measured at a time.
        progress: called with the bytes of each tensor once it is measured, from any thread.

    Raises:
        RecipeError: the recipe has no expert.
    """
    if not recipe.experts:
        raise RecipeError("there are no task vectors", recipe.name, "give the recipe `experts:`")
    bare = build(_bare(recipe), models)
    chains = {job.name: job for job in plan.jobs}
    jobs = [_with_transforms(job, chains.get(job.name)) for job in bare.jobs]
    whole = replace(bare, jobs=tuple(jobs))
    known = answers_of(whole, models, Options(threads=threads))
    readers = Readers(models, whole.row_maps)
    local = threading.local()

    def one(job: Job) -> tuple[Group, Sums]:
        if not hasattr(local, "lane"):
            local.lane = HostLane()
        sums = _sums(job, bare, readers, local.lane, list(recipe.experts), known)
        if progress is not None:
            progress(sum(read.nbytes for read in (*job.reads, *([job.base] if job.base else []))))
        return (job.layer, role_of(job.name)), sums

    try:
        with ThreadPoolExecutor(max_workers=threads) as pool:
            groups = _grouped(pool.map(one, jobs), len(recipe.experts))
    finally:
        readers.close()
    return Vectors(
        recipe=recipe.name,
        base=recipe.base,
        experts={name: expert.reference for name, expert in recipe.experts.items()},
        layers=plan.layers,
        groups=groups,
        touched=touched(plan),
        trimmed=any(len(job.steps) > 1 for job in jobs),
    )


def touched(plan: Plan) -> list[Touched]:
    """Return what each decision of the recipe does, in the order of the first tensor."""
    found: dict[str, list[int]] = {}
    for job in plan.jobs:
        found.setdefault(job.rule.partition(";")[0], []).append(prod(job.shape))
    return [
        Touched(*_place(rule), tensors=len(sizes), entries=sum(sizes))
        for rule, sizes in found.items()
    ]


def _place(rule: str) -> tuple[str, str]:
    where, _, what = rule.partition(" ")
    return where, what


def _bare(recipe: Recipe) -> Recipe:
    """Return a recipe of which every row takes in the deltas of all experts."""
    experts = {
        name: expert.model_copy(update={"weight": None, "steps": ()})
        for name, expert in recipe.experts.items()
    }
    steps = (RecipeStep(op="task_arithmetic", where=recipe.at("steps")),)
    # Routed experts are compared as what they come from, tensor by tensor.
    bare = {"experts": experts, "steps": steps, "rules": (), "moe": None}
    return recipe.model_copy(update=bare)


def _with_transforms(job: Job, real: Job | None) -> Job:
    """Return the row with the transforms that the recipe's own row has, if it is of deltas."""
    if job.kind == "copy" or real is None or real.kind == "copy":
        return job
    before, middle, _ = split(real.steps)
    if get(real.steps[middle].op).space == "weight":
        return job
    steps: list[Step] = [real.steps[at] for at in before]
    return replace(job, steps=(*steps, *job.steps))


def _sums(
    job: Job, plan: Plan, readers: Readers, lane: HostLane, experts: list[str], known: Known
) -> Sums:
    """Return the sums of one tensor."""
    none = Sums.none(len(experts))
    if job.kind == "copy" or not job.steps:
        return replace(none, tensors=1, entries=prod(job.shape), base=_square(job, readers))
    row = Row(job, readers, lane.sides[0], tile=TILE, width=whole_width(job), weight_space=False)
    chain = TorchRow(
        row, lane, seed=plan.seed, layers=plan.layers, known=known.of_row(job), calibration={}
    )
    never = threading.Event()
    chain.find_statistics(never)
    total = replace(none, tensors=1)
    at = [experts.index(read.source) for read in job.reads]
    trimmed = len(job.steps) > 1
    for tile in chain.tiles(never):
        raw = _spread(tile.inputs, at, len(experts))
        kept = raw
        if trimmed:
            kept = _spread([chain.transformed(tile, e) for e in range(len(at))], at, len(experts))
        square = float(tile.base.double().square().sum()) if tile.base is not None else 0.0
        for start in range(0, raw.shape[1], PART):
            part = slice(start, start + PART)
            votes = _votes(raw[:, part])
            exact = raw[:, part].double()
            total += Sums(
                tensors=0,
                entries=exact.shape[1],
                base=square if start == 0 else 0.0,
                gram=(exact @ exact.T).numpy(),
                raw=votes,
                kept=_votes(kept[:, part]) if trimmed else votes,
            )
    chain.check_finite(allow=False)
    return total


def _spread(values: Iterable[Tensor], at: list[int], experts: int) -> Tensor:
    """Return the values as the lines of a matrix, with zeros for experts that have nothing."""
    flat = [value.flatten() for value in values]
    lines = torch.zeros(experts, flat[0].numel() if flat else 0)
    for line, value in zip(at, flat, strict=True):
        lines[line] = value
    return lines


def _votes(lines: Tensor) -> Votes:
    touched = (lines != 0).float()
    opposed = (lines > 0).any(0) & (lines < 0).any(0)
    return Votes(
        both=(touched @ touched.T).to(torch.int64).numpy(),
        shared=int((touched.sum(0) >= 2).sum()),
        conflicts=int(opposed.sum()),
    )


def _square(job: Job, readers: Readers) -> float:
    """Return the sum of squares of a base tensor that no expert changes."""
    read = job.reads[0]
    if readers.info(read.source, read.name).dtype not in FLOAT_DTYPES:
        return 0.0
    row = Row(job, readers, TilePool(), tile=TILE, weight_space=True)
    dtype = row.slots[1].dtype
    total = 0.0
    for _, count in row.tiles(threading.Event()):
        begin = int(row.at[1])
        raw = row.pool.raw[begin : begin + count * DTYPE_BYTES[dtype]]
        values = as_float32(raw, dtype).astype(np.float64)
        total += float(values @ values)
    return total


def _grouped(found: Iterable[tuple[Group, Sums]], experts: int) -> dict[Group, Sums]:
    groups: dict[Group, Sums] = {}
    for key, sums in found:
        groups[key] = groups.get(key, Sums.none(experts)) + sums
    # What is outside the layers comes first.
    return dict(
        sorted(
            groups.items(), key=lambda item: (-1 if item[0][0] is None else item[0][0], item[0][1])
        )
    )
