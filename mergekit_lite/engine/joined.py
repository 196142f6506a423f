"""Adapters that are only added up: their factors side by side are one product in place of many.

Sum of w_i s_i B_i A_i = [w_1 s_1 B_1 | w_2 s_2 B_2 | ...] [A_1; A_2; ...]. Each entry adds the
products of all ranks in the order of the recipe, and no tile of an expert alone is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mergekit_lite.ops import registry
from mergekit_lite.ops._arithmetic import total_weight
from mergekit_lite.plan.types import Job, Read, Step


@dataclass(frozen=True, slots=True)
class JoinedRead(Read):
    """Adapters that enter a row as one input, each with its weight."""

    parts: tuple[tuple[Read, float], ...] = ()


def joined(job: Job) -> Job:
    """Return the row with its plain adapters as one input, where its chain is a weighted sum.

    Rows whose steps look at experts one by one stay as they are.
    """
    is_sum = bool(job.steps) and job.steps[0].op == "task_arithmetic"
    if job.kind != "merge" or job.fusion is not None or not is_sum:
        return job
    if any(_looks_at_experts(step) for step in job.steps[1:]):
        return job
    plain = [read for read in job.reads if _is_plain(read)]
    if len(plain) < 2:
        return job
    combine = job.steps[0]
    params = {**registry()[combine.op].defaults(), **combine.params}
    weights = [float(w) for w in params.get("weights") or [1.0] * len(job.reads)]
    if params["normalize"]:
        total = total_weight(weights)
        # Other inputs would be divided entry by entry, these before the product.
        if len(plain) < len(job.reads) or total == 0:
            return job
        weights = [weight / total for weight in weights]
    parts: list[tuple[Read, float]] = []
    reads: list[Read] = []
    left: list[float] = []
    at = 0
    for read, weight in zip(job.reads, weights, strict=True):
        if not _is_plain(read):
            reads.append(read)
            left.append(weight)
            continue
        if not parts:
            at = len(reads)
        parts.append((read, weight))
    reads.insert(at, _side_by_side(parts))
    left.insert(at, 1.0)
    params |= {"weights": left, "normalize": False}
    step = Step(combine.op, params, combine.expert)
    return replace(job, reads=tuple(reads), steps=(step, *job.steps[1:]))


def _looks_at_experts(step: Step) -> bool:
    """Return whether a post sees more than the sum: the experts' deltas, or sums over them."""
    spec = registry()[step.op]
    return bool(spec.specials - {"place"} or spec.statistics)


def _side_by_side(parts: list[tuple[Read, float]]) -> JoinedRead:
    return JoinedRead(
        source="+".join(read.source for read, _ in parts),
        name="",
        nbytes=sum(read.nbytes for read, _ in parts),
        parts=tuple(parts),
    )


def _is_plain(read: Read) -> bool:
    return read.lora is not None and read.lora.is_plain and read.gather is None
