"""A guess of how long a plan takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from mergekit_lite.ops import OpSpec
from mergekit_lite.ops._statistics import Order
from mergekit_lite.plan.fused import is_fused
from mergekit_lite.plan.layout import job_bytes
from mergekit_lite.plan.row_memory import (
    bytes_once,
    inputs_of,
    is_swept,
    is_whole,
    passes,
    torch_bytes,
)
from mergekit_lite.plan.sweeps import ModelSweep
from mergekit_lite.plan.types import Plan, Step

# Measured on one core of a two-core x86-64 machine with files in the page cache, a 551 M
# parameter bf16 base and three experts (docs/benchmarks.md); an expectation, not a promise.
_START_SECONDS = 0.8
_READ_BYTES_A_SECOND = 2.5e9
_WRITE_BYTES_A_SECOND = 1.0e9
_COPY_BYTES_A_SECOND = 2.5e9
_FUSED_SECONDS = 0.25e-9  # for each entry and input in the fused loop
_STATISTIC_SECONDS = 1.0e-9  # for each entry and input in a sweep that counts or sums
_ROW_SECONDS = 2.5e-9  # for each entry and input of an op that ranks every row
_RANDOM_SECONDS = 1.0e-9  # for each entry and input that draws a mask
_WHOLE_SECONDS = 8.0e-9  # for each entry and input of an op that must see whole tensors
_OPERATION_SECONDS = 6.0e-11  # for each fp64 operation of a decomposition
_TORCH_START_SECONDS = 2.0
_TORCH_SECONDS = 1.0e-8  # for each entry, input, step and pass of a row beyond the fused kernels
_ORDER_PASSES = 3  # of such a row, for an exact k-th largest; sums take one
_CODE_SECONDS = 3.0e-8  # for each entry that becomes a code; a search takes far longer
_SEARCH_SECONDS = 4.0e-7
_LORA_SECONDS = 2.0e-9  # for each entry of a low-rank product, as the ranks are small


def seconds_of(plan: Plan, specs: Mapping[str, OpSpec], workers: int) -> float:
    """Return how long a plan's rows take with so many workers."""
    moved = arithmetic = 0.0
    for job in plan.jobs:
        nbytes = bytes_once(job)
        if job.kind == "copy":
            moved += nbytes / _COPY_BYTES_A_SECOND
            continue
        entries = prod(job.shape)
        each = _FUSED_SECONDS * inputs_of(job)
        each += _LORA_SECONDS * sum(1 for read in job.reads if read.lora)
        if job.coding is not None:
            each += _SEARCH_SECONDS if job.coding.codes.search else _CODE_SECONDS
        fused = is_fused(job)
        for step in job.steps:
            spec, inputs = specs[step.op], 1 if step.expert else len(job.reads)
            swept = is_swept(spec, step, entries)
            if fused:
                each += inputs * _STATISTIC_SECONDS * swept
            else:
                each += inputs * _TORCH_SECONDS * _torch_passes(spec, step, entries)
            each += inputs * _ROW_SECONDS * (spec.reach_for(step.params) == "row")
            each += inputs * _RANDOM_SECONDS * spec.random
            each += inputs * _WHOLE_SECONDS * is_whole(spec, step, job)
            if spec.work is not None:
                done = spec.work(step.params, job.shape, len(job.reads))
                arithmetic += done * _OPERATION_SECONDS
        moved += (
            passes(job, specs) * nbytes / _READ_BYTES_A_SECOND
            + job_bytes(job) / _WRITE_BYTES_A_SECOND
        )
        arithmetic += entries * each
    start = _START_SECONDS + (_TORCH_START_SECONDS if torch_bytes(plan) else 0.0)
    return start + moved + arithmetic / workers


def _torch_passes(spec: OpSpec, step: Step, size: int) -> int:
    """Return how often a step's inputs pass through torch: for its statistics, and for itself."""
    asked = (
        _ORDER_PASSES if isinstance(needs, Order) else 1
        for needs in spec.statistics
        if needs.asked(step.params, size) and not needs.of_model(step.params)
    )
    return 1 + sum(asked)


def sweep_seconds(sweeps: Sequence[ModelSweep], workers: int) -> float:
    """Return how long the sweeps over the whole model take; two bytes are about an entry."""
    nbytes = sum(sweep.read_bytes for sweep in sweeps)
    return nbytes / _READ_BYTES_A_SECOND + nbytes / 2 * _STATISTIC_SECONDS / workers
