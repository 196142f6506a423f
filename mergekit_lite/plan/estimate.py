"""What a plan will cost: bytes read and written, memory, disk and a guess of the time."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_lite.errors import Problem, ResourceError
from mergekit_lite.ops import registry
from mergekit_lite.plan.disk import already_written, free_at
from mergekit_lite.plan.made_first import made_bytes, making_bytes
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.row_memory import (
    LEAST_TILE,
    PROCESS_BYTES,
    ROW_BYTES,
    RUN_BYTES,
    TORCH_BYTES,
    TORCH_COPIES,
    coding_bytes,
    inputs_of,
    kept_bytes,
    made_in_memory,
    mark_bytes,
    rank_bytes,
    read_bytes_of,
    tile_entries,
    torch_bytes,
    whole_bytes,
)
from mergekit_lite.plan.seconds import seconds_of, sweep_seconds
from mergekit_lite.plan.sweeps import ModelSweep, sweeps_of
from mergekit_lite.plan.types import Job, Plan, Read

if TYPE_CHECKING:
    from mergekit_lite.moe.gate_cost import GateCost


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
        gates: what is done to make the gates of a routed model, in words.
    """

    read_bytes: int
    write_bytes: int
    peak_memory: int
    disk_free: int | None
    seconds: float
    least_memory: int = 0
    disk_needed: int = 0
    sweeps: tuple[str, ...] = ()
    gates: str = ""


def estimate(
    plan: Plan,
    *,
    threads: int | None = None,
    max_memory: int | None = None,
    out: Path | None = None,
    refuse: bool = True,
    device: str = "cpu",
) -> Estimate:
    """Return what running `plan` will cost.

    Args:
        plan: what is to be run.
        threads: workers; None is one for each core that this process may use.
        max_memory: cap in bytes on resident memory; None is no cap.
        out: output folder (it need not exist); its filesystem's free space is checked.
        refuse: raise when disk or memory do not suffice, rather than just report them.
        device: `cpu`, or another where torch computes every row; the time is that of the CPU.

    Raises:
        ResourceError: not enough free disk, or `max_memory` below what the plan needs.
    """
    workers = threads or len(os.sched_getaffinity(0))
    specs = registry()
    sweeps = sweeps_of(plan)
    read_bytes = sum(read_bytes_of(job, specs) for job in plan.jobs)
    read_bytes += sum(sweep.read_bytes for sweep in sweeps)
    write_bytes = sum(shard.nbytes for shard in plan.shards)
    table = ROW_BYTES * sum(1 + len(job.reads) + len(job.steps) for job in plan.jobs)
    table += RUN_BYTES * sum(
        len(found.runs) + len(found.shared) for found in plan.row_maps.values()
    )
    jobs = _with_results(plan)
    resident = max((whole_bytes(job, specs, device) for job in jobs), default=0)
    ranked = max((rank_bytes(job, specs) for job in jobs), default=0)
    kept = max((kept_bytes(job, specs) + mark_bytes(job, specs) for job in jobs), default=0)
    ranked += max((coding_bytes(job) for job in jobs), default=0)
    inputs = max((inputs_of(job) for job in jobs if job.kind == "merge"), default=0)
    in_torch = torch_bytes(plan, device)
    # What rows take in torch has torch itself in it, and no more.
    resident += max(in_torch - TORCH_BYTES, 0) if resident else 0
    fixed = PROCESS_BYTES + table + max(resident, in_torch)
    tiles = 4 * (inputs + 2) if inputs else 0
    tiles *= TORCH_COPIES if in_torch else 1
    # Under a cap, rows that cannot be cut run one at a time; without one, on every worker.
    made = max((made_in_memory(job) for job in jobs), default=0)
    more_rows = (workers - 1) * max(made, resident - max(in_torch, TORCH_BYTES))
    peak = fixed + workers * (tile_entries(device) * tiles + ranked + kept) + more_rows
    least = fixed + workers * (LEAST_TILE * tiles + ranked)
    made_first = making_bytes(plan)
    if made_first:
        alone = PROCESS_BYTES + TORCH_BYTES + table + made_first
        peak, least = max(peak, alone), max(least, alone)
    gates = gates_of(plan)
    peak, least = max(peak, gates.memory), max(least, gates.memory)
    inner = [stage for name, stage in plan.stages.items() if name in plan.written]
    written = sum(shard.nbytes for stage in inner for shard in stage.shards) + made_bytes(plan)
    result = Estimate(
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        peak_memory=peak if max_memory is None else min(peak, max(max_memory, least)),
        disk_free=None if out is None else free_at(out),
        seconds=sum(seconds_of(part, specs, workers) for part in (plan, *plan.stages.values()))
        + sweep_seconds(sweeps, workers),
        sweeps=tuple(map(sweep_text, sweeps)),
        gates=gates.text,
        least_memory=least,
        disk_needed=write_bytes + written - (0 if out is None else already_written(plan, out)),
    )
    if refuse:
        require(result, max_memory=max_memory, out=out)
    return result


def gates_of(plan: Plan) -> GateCost:
    """Return what making the gates of a routed model costs."""
    from mergekit_lite.moe.gate_cost import GateCost, gate_cost

    return gate_cost(plan) if plan.moe else GateCost()


def require(cost: Estimate, *, max_memory: int | None, out: Path | None) -> None:
    """Raise `ResourceError`, with what is needed and what there is, where `cost` is too high."""
    problems = []
    if max_memory is not None and cost.least_memory > max_memory:
        problems.append(
            Problem(
                f"the merge needs {size_text(cost.least_memory)} of memory,"
                f" and may use {size_text(max_memory)}",
                hint=f"allow at least --max-memory {-(-cost.least_memory // 1_000_000)}MB;"
                + (" fewer `tokens` need less" if cost.gates else " fewer --threads need less"),
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
