"""What a plan will cost: bytes read and written, memory, disk and a guess of the time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.errors import Problem, ResourceError
from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.ops._statistics import Order
from mergekit_lite.plan.disk import already_written, free_at
from mergekit_lite.plan.layout import job_bytes
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.sweeps import ModelSweep, sweeps_of
from mergekit_lite.plan.types import Job, Plan, Read, Step

PROCESS_BYTES = 112_000_000
"""Resident memory of the interpreter with numpy, llvmlite and compiled kernels.

The first run after an installation compiles them in two processes of 270 MB each, one after the
other where memory is capped.
"""
TORCH_BYTES = 250_000_000
"""What loading torch adds, which only rows beyond the fused kernels need."""
TORCH_COPIES = 4
"""Copies of a tile that an op in torch makes on its way."""
_FUSED = frozenset(
    {"magnitude", "breadcrumbs", "dare", "graft", "linear", "task_arithmetic", "take"}
    | {"passthrough", "scale", "magmax", "magprune", "ram", "consensus", "nearswap"}
)
"""Ops that the fused kernels know, nearly whatever their parameters."""
TILE_ENTRIES = 1 << 18
"""Entries of a full tile; with less memory the engine halves it down to `LEAST_TILE`.

Smaller ones cost time in calls, larger ones in writes of a megabyte (docs/benchmarks.md).
"""
LEAST_TILE = 1 << 12
"""No tile is smaller: sums are blocked by this many entries."""
RANK_ROOM = 1 << 21
"""Magnitudes, with their indices, that a worker keeps for all exact ranks it looks for."""
LEAST_RANK_ROOM = 1 << 16
"""Those it keeps for one rank, however many there are; tensors up to this size are kept whole."""
RANK_SAMPLE = 1 << 19
"""Magnitudes that it samples of each input."""
KEPT_BYTES = 48 << 20
"""Inputs of a row of at most this size are read once, however often the row is swept."""
ROW_BYTES = 600
"""Resident memory of a plan for each read and each step of each row."""

RUN_BYTES = 250
"""That of a run of rows in a map between vocabularies."""

# Measured on one core of a two-core x86-64 machine with files in the page cache, a 551 M
# parameter bf16 base and three experts (docs/benchmarks.md); an expectation, not a promise.
_START_SECONDS = 0.8
_READ_BYTES_A_SECOND = 2.5e9
_WRITE_BYTES_A_SECOND = 1.0e9
_COPY_BYTES_A_SECOND = 2.5e9
_FUSED_SECONDS = 0.25e-9  # for each entry and input in the fused loop
_STATISTIC_SECONDS = 1.0e-9  # for each entry and input in a sweep that counts or sums
_ROW_SECONDS = 8.0e-9  # for each entry and input of an op that ranks every row
_RANDOM_SECONDS = 1.0e-9  # for each entry and input that draws a mask
_WHOLE_SECONDS = 8.0e-9  # for each entry and input of an op that must see whole tensors
_OPERATION_SECONDS = 6.0e-11  # for each fp64 operation of a decomposition
_LORA_SECONDS = 2.0e-9  # for each entry of a low-rank product, as the ranks are small


@dataclass(frozen=True)
class Estimate:
    """The cost of a plan.

    Attributes:
        read_bytes: bytes of inputs; of large tensors twice where a statistic takes a sweep of its
            own (which finds most of them cached by the system).
        write_bytes: bytes of all output weight files.
        peak_memory: bytes of resident memory, at most `max_memory` where that suffices.
        disk_free: bytes free where the output goes; None when no folder was named.
        seconds: a guess of the wall time.
        least_memory: smallest `max_memory` that this plan can run under with these threads.
        disk_needed: bytes still to be written there (a partial run's shards are subtracted).
        sweeps: what is read of the whole model for statistics before the first row, in words;
            what earlier runs have found is not among it.
    """

    read_bytes: int
    write_bytes: int
    peak_memory: int
    disk_free: int | None
    seconds: float
    least_memory: int = 0
    disk_needed: int = 0
    sweeps: tuple[str, ...] = ()


def estimate(
    plan: Plan,
    *,
    threads: int | None = None,
    max_memory: int | None = None,
    out: Path | None = None,
    refuse: bool = True,
) -> Estimate:
    """Return what running `plan` will cost.

    Args:
        plan: what is to be run.
        threads: workers; None is one for each core that this process may use.
        max_memory: cap in bytes on resident memory; None is no cap.
        out: output folder (it need not exist); its filesystem's free space is checked.
        refuse: raise when disk or memory do not suffice, rather than just report them.

    Raises:
        ResourceError: not enough free disk, or `max_memory` below what the plan needs.
    """
    workers = threads or len(os.sched_getaffinity(0))
    specs = registry()
    sweeps = sweeps_of(plan)
    read_bytes = sum(_passes(job, specs) * _read_bytes(job) for job in plan.jobs)
    read_bytes += sum(sweep.read_bytes for sweep in sweeps)
    write_bytes = sum(shard.nbytes for shard in plan.shards)
    table = ROW_BYTES * sum(1 + len(job.reads) + len(job.steps) for job in plan.jobs)
    table += RUN_BYTES * sum(
        len(found.runs) + len(found.shared) for found in plan.row_maps.values()
    )
    jobs = _with_results(plan)
    resident = max((whole_bytes(job, specs) for job in jobs), default=0)
    ranked = max((_rank_bytes(job, specs) for job in jobs), default=0)
    kept = max((_kept_bytes(job, specs) for job in jobs), default=0)
    inputs = max((_inputs(job) for job in jobs if job.kind == "merge"), default=0)
    fixed = PROCESS_BYTES + table + max(resident, torch_bytes(plan))
    tiles = 4 * (inputs + 2) if inputs else 0
    tiles *= TORCH_COPIES if torch_bytes(plan) else 1
    # Under a cap, rows that cannot be cut run one at a time; without one, on every worker.
    made = max((_made(job) for job in jobs), default=0)
    more_rows = (workers - 1) * max(made, resident - TORCH_BYTES)
    peak = fixed + workers * (TILE_ENTRIES * tiles + ranked + kept) + more_rows
    least = fixed + workers * (LEAST_TILE * tiles + ranked)
    inner = [stage for name, stage in plan.stages.items() if name in plan.written]
    written = sum(shard.nbytes for stage in inner for shard in stage.shards)
    result = Estimate(
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        peak_memory=peak if max_memory is None else min(peak, max(max_memory, least)),
        disk_free=None if out is None else free_at(out),
        seconds=sum(_seconds(part, specs, workers) for part in (plan, *plan.stages.values()))
        + _sweep_seconds(sweeps, workers),
        sweeps=tuple(map(sweep_text, sweeps)),
        least_memory=least,
        disk_needed=write_bytes + written - (0 if out is None else already_written(plan, out)),
    )
    if refuse:
        require(result, max_memory=max_memory, out=out)
    return result


def require(cost: Estimate, *, max_memory: int | None, out: Path | None) -> None:
    """Raise `ResourceError`, with what is needed and what there is, where `cost` is too high."""
    problems = []
    if max_memory is not None and cost.least_memory > max_memory:
        problems.append(
            Problem(
                f"the merge needs {size_text(cost.least_memory)} of memory,"
                f" and may use {size_text(max_memory)}",
                hint=f"allow at least --max-memory {-(-cost.least_memory // 1_000_000)}MB;"
                " fewer --threads need less",
            )
        )
    if cost.disk_free is not None and cost.disk_needed > cost.disk_free:
        problems.append(
            Problem(
                f"the output needs {size_text(cost.disk_needed)} of disk,"
                f" {size_text(cost.disk_free)} are free",
                where=str(out),
                hint="free some space, or write to another disk",
            )
        )
    if problems:
        raise ResourceError(problems)


def size_text(nbytes: int) -> str:
    """Return a size as a person writes it: `4.1 GB`, in powers of 1000."""
    size = float(nbytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def sweep_text(sweep: ModelSweep) -> str:
    """Return what a sweep over the whole model is for and what it reads."""
    ops = ", ".join(f"`{op}`" for op in sweep.ops)
    often = {1: "once", 2: "twice"}.get(sweep.passes, f"{sweep.passes} times")
    rows = plural(sweep.rows, "tensor")
    size = size_text(sweep.read_bytes)
    return f"a statistic of the whole model for {ops}: {rows} read {often}, {size}"


def _read_bytes(job: Job) -> int:
    if job.kind == "copy":
        return job.reads[0].nbytes
    reads = {(r.source, r.name): r.nbytes for r in job.reads if not r.zero}
    if job.base is not None:
        reads[job.base.source, job.base.name] = job.base.nbytes
    return sum(reads.values())


def _inputs(job: Job) -> int:
    reads = [*job.reads, *([job.base] if job.base else [])]
    # Codes and what they are looked up in take as much again as the numbers; so do a stage's.
    return len(reads) + sum(read.made for read in reads)


def _with_results(plan: Plan) -> list[Job]:
    """Return the rows as they are once stages have been written: these results are just read."""
    names = {name for name, source in plan.inputs.items() if source.stage in plan.written}
    if not names:
        return list(plan.jobs)

    def settled(read: Read) -> Read:
        return replace(read, made=False, held=0) if read.source in names else read

    return [
        replace(
            job,
            base=job.base and settled(job.base),
            reads=tuple(settled(read) for read in job.reads),
        )
        for job in plan.jobs
    ]


def _made(job: Job) -> int:
    """Return the memory that stays in use while inputs are made of codes or by stages."""
    return sum(read.held for read in (*job.reads, *([job.base] if job.base else [])))


def read_bytes_of(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return the bytes that computing a row reads, every sweep counted."""
    return _passes(job, specs) * _read_bytes(job)


def made_bytes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return the memory that a stage's row takes while another row reads its result."""
    if job.kind == "copy":
        return 0
    tiles = 4 * TILE_ENTRIES * (_inputs(job) + 2)
    result = job_bytes(job) if any(_is_whole(specs[step.op], step) for step in job.steps) else 0
    kept = _kept_bytes(job, specs)
    return tiles + result + kept + _rank_bytes(job, specs) + whole_bytes(job, specs)


def whole_bytes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return the bytes that a row takes beside its tiles: whole tensors in fp32, factors, codes."""
    if job.kind == "copy":
        return 0
    factors = 2 * sum(read.nbytes for read in job.reads if read.lora)
    if truncated := sum(1 for read in job.reads if read.lora and read.lora.diagonal):
        factors += TORCH_BYTES + 16 * prod(job.shape) * truncated  # the matrix and its SVD
    factors += _made(job)
    entries, inputs = prod(job.shape), len(job.reads)
    if not any(_is_whole(specs[step.op], step) for step in job.steps):
        # Statistics are held whole, whatever the tile.
        asked = [step for step in job.steps if specs[step.op].calibration]
        held = sum(specs[s.op].workspace_bytes(s.params, job.shape, inputs) for s in asked)
        return factors + (TORCH_BYTES + held if held else 0)
    # As stored, in fp32 with the base, the result, and what becomes of it on the way to its bytes.
    stored = _read_bytes(job) + 4 * entries * sum(1 for read in job.reads if read.lora)
    work = max(specs[s.op].workspace_bytes(s.params, job.shape, inputs) for s in job.steps)
    return TORCH_BYTES + factors + stored + 4 * entries * (inputs + 4) + work


def torch_bytes(plan: Plan) -> int:
    """Return what loading torch takes, where a row or a sweep over the model needs it."""
    specs = registry()
    needed = any(
        job.kind == "merge" and not all(_is_fused(specs[s.op], s, job) for s in job.steps)
        for job in plan.jobs
    )
    return TORCH_BYTES if needed else 0


def _is_fused(spec: OpSpec, step: Step, job: Job) -> bool:
    """Return whether the fused kernels know an op with these parameters."""
    if spec.name == "sign_consensus":
        return not any(needs.of_model(step.params) for needs in spec.statistics)
    if spec.blend is not None:
        asked = all(needs.asked(step.params, 1) for needs in spec.statistics)
        return asked and not any(step.expert for step in job.steps)
    return spec.name in _FUSED and (spec.name, step.params.get("rescale")) != ("magprune", "l1")


def _rank_bytes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return what one worker keeps while it looks for the k-th largest magnitudes of a row."""
    size = prod(job.shape)
    ranks = max(
        (
            len(needs.ranks(step.params, size))
            for step in job.steps
            for needs in specs[step.op].statistics
            if isinstance(needs, Order) and not needs.of_model(step.params)
        ),
        default=0,
    )
    if not ranks:
        return 0
    slots = len(job.reads) * ranks
    kept = slots * (rank_room(size, slots) + 8)
    sampled = min(size, RANK_SAMPLE) * (len(job.reads) + 2)
    return 12 * kept + 4 * sampled


def rank_room(size: int, slots: int) -> int:
    """Return how many magnitudes are kept for each of `slots` ranks of a tensor's deltas."""
    return min(size, max(LEAST_RANK_ROOM, RANK_ROOM // slots))


def _is_whole(spec: OpSpec, step: Step) -> bool:
    return spec.reach_for(step.params) not in ("element", "row")


def _is_swept(spec: OpSpec, step: Step, size: int) -> bool:
    """Return whether a step needs a sweep over the tensor before its first tile."""
    return any(
        needs.asked(step.params, size) and not needs.of_model(step.params)
        for needs in spec.statistics
    )


def _passes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return how often the inputs of a row are read."""
    return 1 if _kept_bytes(job, specs) or not _is_row_swept(job, specs) else 2


def _is_row_swept(job: Job, specs: Mapping[str, OpSpec]) -> bool:
    size = prod(job.shape)
    return any(_is_swept(specs[step.op], step, size) for step in job.steps)


def _kept_bytes(job: Job, specs: Mapping[str, OpSpec]) -> int:
    """Return the bytes of inputs that are kept between the sweeps of a row."""
    if job.kind == "copy" or not _is_row_swept(job, specs):
        return 0
    entries = prod(job.shape)
    reads = [*job.reads, *([job.base] if job.base else [])]
    total = sum(_held(read, entries) for read in reads if not read.zero)
    return total if total <= KEPT_BYTES else 0


def _held(read: Read, entries: int) -> int:
    """Return the bytes that an input takes in memory as a whole."""
    if read.gather is not None:
        return entries * DTYPE_BYTES[read.gather.dtype]
    return 4 * entries if read.lora or read.made else read.nbytes


def _seconds(plan: Plan, specs: Mapping[str, OpSpec], workers: int) -> float:
    moved = arithmetic = 0.0
    for job in plan.jobs:
        nbytes = _read_bytes(job)
        if job.kind == "copy":
            moved += nbytes / _COPY_BYTES_A_SECOND
            continue
        entries = prod(job.shape)
        each = _FUSED_SECONDS * _inputs(job)
        each += _LORA_SECONDS * sum(1 for read in job.reads if read.lora)
        for step in job.steps:
            spec, inputs = specs[step.op], 1 if step.expert else len(job.reads)
            swept = _is_swept(spec, step, entries)
            each += inputs * _STATISTIC_SECONDS * swept
            each += inputs * _ROW_SECONDS * (spec.reach_for(step.params) == "row")
            each += inputs * _RANDOM_SECONDS * spec.random
            each += inputs * _WHOLE_SECONDS * _is_whole(spec, step)
            if spec.work is not None:
                done = spec.work(step.params, job.shape, len(job.reads))
                arithmetic += done * _OPERATION_SECONDS
        moved += (
            _passes(job, specs) * nbytes / _READ_BYTES_A_SECOND
            + job_bytes(job) / _WRITE_BYTES_A_SECOND
        )
        arithmetic += entries * each
    return _START_SECONDS + moved + arithmetic / workers


def _sweep_seconds(sweeps: Sequence[ModelSweep], workers: int) -> float:
    """Return how long the sweeps over the whole model take; two bytes are about an entry."""
    nbytes = sum(sweep.read_bytes for sweep in sweeps)
    return nbytes / _READ_BYTES_A_SECOND + nbytes / 2 * _STATISTIC_SECONDS / workers
