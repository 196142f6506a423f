"""What is known of the whole model once it has been swept, kept in the unfinished folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergekit_lite.ops import registry
from mergekit_lite.ops._answers import from_data, to_data
from mergekit_lite.ops._place import Cut
from mergekit_lite.ops._statistics import Answer
from mergekit_lite.plan.questions import asked_by
from mergekit_lite.plan.types import Job

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

    def cuts(self, job: Job, expert: int, position: int) -> tuple[Cut, ...]:
        """Return the cuts of an expert's transform at `position` of its own chain."""
        name, specs = job.reads[expert].source, registry()
        mine = [
            at
            for at, step in enumerate(job.steps)
            if step.expert == name and specs[step.op].kind == "transform"
        ]
        found: tuple[Cut, ...] = self.of_row(job)[mine[position], name][0]
        return found


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
