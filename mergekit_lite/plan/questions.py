"""What a plan must know of the whole model before its first row: one question a statistic.

Rows that ask the same (the same op, of the same expert, with the same parameters) share a
question, which is then about all their entries together. Questions of one level are answered in
one sweep over all rows; a later level sees the answers of those before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.ops._statistics import Answer, Order, Statistic
from mergekit_lite.plan.types import Job, Plan


@dataclass(frozen=True)
class Question:
    """One statistic of the whole model.

    Attributes:
        key: what it is known by.
        op: whose statistic it is.
        index: which of the op's statistics.
        expert: of a transform, whose deltas it is about.
        order: how far down the chain it is asked: (part of the chain, position, index).
        params: the op's parameters, without weights, as the first row has them.
        uses: (row, position in its steps) wherever it is asked.
        size: entries of all these rows together, and of the tensors that nobody changes.
        untouched: (layer, entries) of the latter, which no row brings: all are zero.
        level: sweeps of lower levels come first.
    """

    key: str
    op: str
    index: int
    expert: str
    order: tuple[int, int, int]
    params: Mapping[str, Any] = field(default_factory=dict)
    uses: tuple[tuple[int, int], ...] = ()
    size: int = 0
    untouched: tuple[tuple[int, int], ...] = ()
    level: int = 0

    @property
    def needs(self) -> Statistic:
        """The statistic that is asked for."""
        needs: Statistic = registry()[self.op].statistics[self.index]
        return needs

    @property
    def is_asked(self) -> bool:
        """Whether an answer takes a sweep: with these parameters, for so many entries."""
        return self.needs.asked(self.params, self.size)

    @property
    def unasked(self) -> Answer:
        """The answer to a question that need not be asked."""
        return () if isinstance(self.needs, Order) else None

    @property
    def passes(self) -> int:
        """How often its rows are read to answer it."""
        return 2 if isinstance(self.needs, Order) else 1


def may_ask(ops: Iterable[str]) -> bool:
    """Return whether any of these ops may ask something of the whole model."""
    specs = registry()
    return any(needs.whole or needs.scope for op in ops for needs in specs[op].statistics)


def asked_by(job: Job) -> Iterator[tuple[int, Question]]:
    """Yield every question of a row with the position of the step that asks; rows are not told."""
    specs = registry()
    behind: dict[str, list[str]] = {}  # expert ("" behind the combine) -> ops so far
    part = 0
    for at, step in enumerate(job.steps):
        spec = specs[step.op]
        part = {"transform": 0, "combine": 1, "post": 2}[spec.kind]
        before = behind.setdefault(step.expert if part == 0 else "", [])
        params = full_params(job, at, specs)
        for index, needs in enumerate(spec.statistics):
            if needs.of_model(params):
                looks = relevant(needs, params)
                looks.pop("weights", None)
                sources = [read.source for read in job.reads] if part == 1 else []
                named = [step.op, index, looks, step.expert, part, before, sources]
                key = json.dumps(named, sort_keys=True)
                order = (part, len(before), index)
                yield at, Question(key, step.op, index, step.expert, order, looks)
        before.append(step.op)


def full_params(job: Job, at: int, specs: Mapping[str, OpSpec]) -> dict[str, Any]:
    """Return all parameters of a row's step, with those that it does not say."""
    step = job.steps[at]
    spec = specs[step.op]
    return dict(spec.params_for({**spec.defaults(), **step.params}, job.shape))


def relevant(needs: Statistic, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a statistic depends on."""
    if needs.depends is None:
        return {name: value for name, value in params.items() if name != "weights"}
    names = (*needs.depends, *([needs.scope] if needs.scope else []))
    return {name: params.get(name) for name in names}


def questions_of(plan: Plan) -> list[Question]:
    """Return all questions of a plan, those of lower levels first; not all need be asked."""
    found: dict[str, Question] = {}
    for number, job in enumerate(plan.jobs):
        if not may_ask(step.op for step in job.steps):
            continue
        for at, question in asked_by(job):
            known = found.get(question.key, question)
            uses, size = (*known.uses, (number, at)), known.size + prod(job.shape)
            found[question.key] = replace(known, uses=uses, size=size)
    for key, untouched in plan.untouched.items():
        if key in found:
            size = found[key].size + sum(entries for _, entries in untouched)
            found[key] = replace(found[key], untouched=untouched, size=size)
    return _levelled(plan, sorted(found.values(), key=lambda question: question.order))


def _levelled(plan: Plan, questions: list[Question]) -> list[Question]:
    levels: dict[str, int] = {}
    result = []
    for question in questions:  # in the chains' order, so that what is upstream comes first
        upstream = {key for number, at in question.uses for key in before(plan, question, number)}
        level = max((levels[key] + 1 for key in upstream if key in levels), default=0)
        levels[question.key] = level
        result.append(replace(question, level=level))
    return sorted(result, key=lambda question: (question.level, question.order))


def before(plan: Plan, question: Question, number: int) -> list[str]:
    """Return the keys of what a row asks upstream of one of its questions."""
    part, position, _ = question.order
    alone = question.needs.derived is None  # of the op's earlier statistics
    return [
        other.key
        for _, other in asked_by(plan.jobs[number])
        if other.order < question.order
        and (part > 0 or other.expert == question.expert)
        and not (alone and other.order[:2] == (part, position))
    ]
