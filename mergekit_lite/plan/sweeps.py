"""The sweeps over the whole model that a run makes before its first row, and what they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekit_lite.ops._statistics import Answer
from mergekit_lite.plan.questions import Question, questions_of
from mergekit_lite.plan.remembered import Remembered, digest_of
from mergekit_lite.plan.types import Job, Plan


@dataclass(frozen=True)
class ModelSweep:
    """What answers the questions of one level.

    Attributes:
        ops: that ask.
        passes: how often the rows are read.
        rows: that are read.
        read_bytes: of all passes together.
    """

    ops: tuple[str, ...]
    passes: int
    rows: int
    read_bytes: int


def sweeps_of(plan: Plan, cache: Remembered | None = None) -> list[ModelSweep]:
    """Return the sweeps that a run of a plan makes; none for what the cache knows.

    Args:
        plan: the table of rows.
        cache: answers of earlier runs; None looks into the cache folder.
    """
    questions = questions_of(plan)
    if not questions:
        return []
    cache = Remembered() if cache is None else cache
    table: dict[str, Answer] = {}
    levels: dict[int, list[Question]] = {}
    for question in questions:
        if not question.is_asked:
            table[question.key] = question.unasked
            continue
        answer = cache.get(digest_of(plan, question, table))
        if answer is None:
            levels.setdefault(question.level, []).append(question)
        else:
            table[question.key] = answer
    return [sweep_of(plan, asked) for asked in levels.values()]


def sweep_of(plan: Plan, asked: Sequence[Question]) -> ModelSweep:
    """Return the sweep that answers these questions of one level."""
    ops = tuple(dict.fromkeys(question.op for question in asked))
    rows: dict[int, list[Question]] = {}
    for question in asked:
        for number, _ in question.uses:
            rows.setdefault(number, []).append(question)
    total = 0
    for number, here in rows.items():
        total += max(question.passes for question in here) * _read_bytes(plan.jobs[number], here)
    passes = max(question.passes for question in asked)
    return ModelSweep(ops, passes, len(rows), total)


def _read_bytes(job: Job, asked: Sequence[Question]) -> int:
    """Return the bytes of a row's inputs that its questions are about, and of the base."""
    wanted = {question.expert for question in asked}
    reads = [read for read in job.reads if "" in wanted or read.source in wanted]
    reads += [job.base] if job.base is not None else []
    return sum({(read.source, read.name): read.nbytes for read in reads if not read.zero}.values())
