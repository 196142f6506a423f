"""What is known of the whole model once it has been swept, kept in the unfinished folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_lite.errors import DataError
from mergekit_lite.ops import registry
from mergekit_lite.ops._answers import from_data, to_data
from mergekit_lite.ops._place import Cut, Sums
from mergekit_lite.ops._statistics import Answer
from mergekit_lite.plan.questions import asked_by
from mergekit_lite.plan.types import Job, Plan

STATISTICS = "statistics.json"


@dataclass
class Known:
    """Answers of whole-model statistics by the key of their question."""

    table: Mapping[str, Answer] = field(default_factory=dict)

    def of_row(self, job: Job) -> dict[tuple[int, str], dict[int, Answer]]:
        """Return a row's answers by (position in its steps, expert), then by the op's statistic."""
        found: dict[tuple[int, str], dict[int, Answer]] = {}
        for at, question in asked_by(job) if self.table else ():
            if question.key in self.table:
                answers = found.setdefault((at, job.steps[at].expert), {})
                answers[question.index] = self.table[question.key]
        return found

    def of_transform(self, job: Job, expert: int, position: int) -> tuple[Cut, ...] | Sums:
        """Return cuts or sums of an expert's transform at `position` of its own chain."""
        name, specs = job.reads[expert].source, registry()
        mine = [
            at
            for at, step in enumerate(job.steps)
            if step.expert == name and specs[step.op].kind == "transform"
        ]
        answers = self.of_row(job).get((mine[position], name), {})
        if 0 not in answers:
            raise missing(job.name, job.steps[mine[position]].op)
        found: tuple[Cut, ...] | Sums = answers[0]
        return found

    def sums(self, job: Job) -> Sums:
        """Return the sums of a combine that no transform precedes."""
        answer = self.of_row(job).get((0, ""), {}).get(0)
        if not isinstance(answer, Sums):
            raise missing(job.name, job.steps[0].op)
        return answer


def told(plan: Plan, known: Known) -> dict[str, Any]:
    """Return what ops have to say of their whole-model statistics: op -> plain data.

    An op that is asked with several parameters speaks for the rows of the first.
    """
    specs = registry()
    found: dict[str, Any] = {}
    for job in plan.jobs if known.table else ():
        for (at, _), answers in known.of_row(job).items():
            op = job.steps[at].op
            spec = specs[op]
            if spec.reports is not None and op not in found:
                every = tuple(answers.get(index) for index in range(len(spec.statistics)))
                found[op] = dict(spec.reports({**spec.defaults(), **job.steps[at].params}, every))
    return found


def missing(tensor: str, op: str) -> DataError:
    """Return the error of a row that is computed where nobody has swept the model for it."""
    return DataError(
        f"`{op}` needs a statistic of the whole model, which is not in this folder",
        tensor,
        f"run `mergekit-lite run` to its end, which leaves `{STATISTICS}` where shards are made",
    )


def load_known(folder: Path) -> Known:
    """Return what a run has left in its folder; nothing where that is missing or damaged."""
    try:
        data = json.loads((folder / STATISTICS).read_text())
        return Known({key: from_data(answer) for key, answer in data.items()})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return Known()  # none yet, or torn when the machine went down


def save_known(known: Known, folder: Path) -> None:
    """Write what is known into a run's folder, for a resumed run and for other machines."""
    path = folder / STATISTICS
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({key: to_data(answer) for key, answer in known.table.items()}))
    partial.replace(path)
