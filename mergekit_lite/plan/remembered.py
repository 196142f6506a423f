"""Statistics of whole models that earlier runs have found, kept in the cache folder.

An answer is known by all that it depends on: the input files (path, size, times, inode), which
tensors are read and what is done to them upstream, the op's parameters and source text. What comes
after it in a chain does not count, so that trying values of `lambda` sweeps the inputs once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mergekit_lite.folders import cache_folder
from mergekit_lite.ops import _statistics as statistics_module
from mergekit_lite.ops import registry
from mergekit_lite.ops._answers import from_data, to_data
from mergekit_lite.ops._calibration import files_of
from mergekit_lite.ops._statistics import Answer
from mergekit_lite.plan.digests import replace_text
from mergekit_lite.plan.questions import Question, before, full_params, relevant
from mergekit_lite.plan.types import Job, Plan, Step

MOST_BYTES = 4_000_000
"""Size of the file beyond which the oldest answers are forgotten."""
_NOT_ASKED = frozenset(
    {"inputs", "jobs", "shards", "dtype", "seed", "warnings", "recipe", "config", "folder"}
    | {"untouched"}
)
"""Fields of a plan that no answer depends on, or that are looked at in more detail."""


class Remembered:
    """Answers of whole-model statistics by the digest of all that they depend on.

    Args:
        file: where they are kept; None takes one in the cache folder.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = cache_folder("statistics.json") if file is None else file
        self._known = _load(self.file)
        self._fresh: dict[str, Any] = {}

    def get(self, digest: str | None) -> Answer | None:
        """Return an answer, None where it is not known or its entry is damaged."""
        if digest is None or digest not in self._known:
            return None
        with contextlib.suppress(ValueError):
            return from_data(self._known[digest])
        return None

    def put(self, digest: str | None, answer: Answer) -> None:
        """Remember an answer; `save` writes it."""
        if digest is not None:
            self._known[digest] = self._fresh[digest] = to_data(answer)

    def save(self) -> None:
        """Write what is new; others' entries are kept, a cache that cannot be written is left."""
        if not self._fresh:
            return
        entries = {key: data for key, data in _load(self.file).items() if key not in self._fresh}
        kept: dict[str, Any] = {}
        room = MOST_BYTES
        for key, data in reversed([*entries.items(), *self._fresh.items()]):  # the newest first
            room -= len(key) + len(json.dumps(data)) + 8
            if room < 0:
                break
            kept[key] = data
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self.file, json.dumps(dict(reversed(kept.items()))))
            self._fresh.clear()


def _load(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def digest_of(plan: Plan, question: Question, table: Mapping[str, Answer]) -> str | None:
    """Return the digest of all that an answer depends on; None where that cannot be told.

    Args:
        plan: whose question it is.
        question: what is asked.
        table: answers by key; those upstream must be among them.
    """
    rows = [_row(plan, question, number, at) for number, at in question.uses]
    read = [one for row in rows for one in (*row["reads"], row["base"]) if one is not None]
    parts = [part for one in read if one.gather is not None for part in one.gather.parts]
    names = sorted({one.source for one in (*read, *parts)})
    files = _identities(plan, names)
    measured = _statistic_files(plan, question)
    upstream = {key for number, _ in question.uses for key in before(plan, question, number)}
    if files is None or measured is None or not upstream <= table.keys():
        return None
    specs = registry()
    ops = {step["op"] for row in rows for step in row["steps"]} | {question.op}
    draws = any(specs[op].random for op in ops)
    facts = {
        "question": question.key,
        "rows": rows,
        "untouched": question.untouched,
        "files": files,
        "measured": measured,
        "upstream": {key: to_data(table[key]) for key in sorted(upstream)},
        "seed": plan.seed if draws else None,
        "source": {op: _source_of(specs[op].function.__module__) for op in sorted(ops)},
        "statistics": _source_of(statistics_module.__name__),
        "plan": {
            field.name: getattr(plan, field.name)
            for field in dataclasses.fields(plan)
            if field.name not in _NOT_ASKED
        },
    }
    text = json.dumps(facts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _row(plan: Plan, question: Question, number: int, at: int) -> dict[str, Any]:
    """Return what of a row an answer depends on."""
    job = plan.jobs[number]
    own = relevant(question.needs, full_params(job, at, registry()))
    mine = [read for read in job.reads if not question.expert or read.source == question.expert]
    return {
        "name": job.name,
        "shape": job.shape,
        "layer": job.layer,
        "base": job.base,
        "reads": mine,
        "own": own,
        "steps": [_step(step) for step in _upstream(job, question, at)],
    }


def _upstream(job: Job, question: Question, at: int) -> list[Step]:
    if question.order[0] == 0:
        return [step for step in job.steps[:at] if step.expert == question.expert]
    return list(job.steps[:at])


def _step(step: Step) -> dict[str, Any]:
    return {"op": step.op, "expert": step.expert, "params": dict(step.params)}


def _plain(value: Any) -> Any:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _identities(plan: Plan, names: list[str]) -> dict[str, list[list[Any]]] | None:
    """Return which files these inputs are, None where they do not lie on this machine."""
    found: dict[str, list[list[Any]]] = {}
    for name in names:
        source = plan.inputs.get(name)
        if source is None or not source.files:
            return None
        root = Path(source.root)
        stamps: list[list[Any]] = []
        for file in sorted(source.files):
            try:
                stamps.append(_stamp(root if root.is_file() else root / file))
            except OSError:
                return None
        # Tasks of one store are in one file; names of stored tensors are alike in all of them.
        part = source.reference if source.kind == "patch" else ""
        found[name] = [[source.kind, part], *stamps]
    return found


def _statistic_files(plan: Plan, question: Question) -> list[list[Any]] | None:
    """Return which statistic files the steps up to the one that asks read, None if one is gone."""
    specs = registry()
    paths = set()
    for number, at in question.uses:
        job = plan.jobs[number]
        names = [read.source for read in job.reads]
        for step in (*_upstream(job, question, at), job.steps[at]):
            if specs[step.op].calibration:
                paths |= set(files_of(step.params, names).values())
    try:
        return [_stamp(Path(plan.folder) / path) for path in sorted(paths)]
    except OSError:
        return None


def _stamp(path: Path) -> list[Any]:
    real = Path(os.path.realpath(path))
    status = real.stat()
    return [str(real), status.st_size, status.st_mtime_ns, status.st_ino]


@cache
def _source_of(module: str) -> str:
    """Return the sha256 of a module's source text; the name where it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_file():
        return module
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
