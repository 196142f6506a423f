"""Runs tasks of lm-eval on a model, and takes what it says of each question."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_lite.errors import DataError, Problem, RecipeError, ResourceError
from mergekit_lite.quality.forward import Settings
from mergekit_lite.quality.scores import TaskScore
from mergekit_lite.quality.subjects import Subject
from mergekit_lite.quality.tasks import Task

_WIDTH = {"float32": 4, "bfloat16": 2}


def require_runnable(
    subjects: Sequence[Subject], tasks: Sequence[Task], settings: Settings
) -> None:
    """Check that models and tasks are what lm-eval can run; no weight is read.

    Raises:
        RecipeError: a model is on no disk, or lm-eval has no such task.
        ResourceError: a model would take more memory than is allowed; tells how to go on.
    """
    problems = [
        Problem("lm-eval runs what is in a folder, and this is computed while it is read",
                each.name, "run it as a recipe of its own, and name the result")
        for each in subjects
        if each.model.stage
    ]  # fmt: skip
    if problems:
        raise RecipeError(problems)
    width = _WIDTH[settings.dtype]
    for each in subjects:
        need = width * sum(info.size for info in each.model.header.tensors.values())
        if settings.max_memory is not None and need > settings.max_memory:
            raise ResourceError(
                f"lm-eval holds all of `{each.name}` in memory, about {need:,} bytes, and"
                f" {settings.max_memory:,} are allowed",
                "--max-memory",
                "score your own --data, which takes one layer at a time, give `--dtype bfloat16`,"
                " or allow more memory",
            )
    for task in tasks:
        if task.task not in _manager(task).all_tasks:
            hint = "list its tasks with `lm-eval ls tasks`, or give a FILE.yaml of your own"
            raise RecipeError(f"lm-eval has no task `{task.task}`", task.name, hint)


def task_scores(
    subject: Subject, tasks: Sequence[Task], settings: Settings, tell: Callable[[str], object]
) -> dict[str, TaskScore]:
    """Return what a model scores at tasks; all of it is in memory.

    Args:
        subject: the model.
        tasks: which.
        settings: how it is run.
        tell: called with sentences on how far it is.

    Raises:
        DataError: a task gives no numbers of which more is better.
    """
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=str(subject.model.root),
        dtype=settings.dtype,
        device=settings.device,
        batch_size=8,
    )
    found = {}
    for task in tasks:
        tell(f"{subject.name}: task {task.task}")
        found[task.name] = _scored(task, model)
    return found


def _scored(task: Task, model: Any) -> TaskScore:
    from lm_eval import simple_evaluate

    with _inside(task.folder):
        found = simple_evaluate(
            model=model,
            tasks=[task.task],
            task_manager=_manager(task),
            log_samples=True,
            bootstrap_iters=0,
        )
    if not found or not found["samples"]:
        raise DataError("lm-eval gave nothing for it", task.name, "look at what it printed")
    metric = ""
    values: list[float] = []
    for name in sorted(found["samples"]):
        samples = found["samples"][name]
        first = [s for s in samples if s["filter"] == samples[0]["filter"]]
        metric = metric or _metric(found["higher_is_better"].get(name, {}), first, task)
        for sample in sorted(first, key=lambda each: int(each["doc_id"])):
            values.append(_number(sample, metric, task))
    return TaskScore(metric, tuple(values))


def _metric(rises: Mapping[str, bool], samples: Sequence[Mapping[str, Any]], task: Task) -> str:
    """Return the first metric of a task of which more is better."""
    for metric in samples[0]["metrics"]:
        if rises.get(metric) and isinstance(samples[0].get(metric), int | float):
            return str(metric)
    what = "it has no metric that gives each question a number of which more is better"
    raise DataError(what, task.name, "score texts with --data instead")


def _number(sample: Mapping[str, Any], metric: str, task: Task) -> float:
    value = sample.get(metric)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"lm-eval gives a question no `{metric}`", task.name)
    return float(value)


def _manager(task: Task) -> Any:
    from lm_eval.tasks import TaskManager

    if task.folder is None:
        return TaskManager()
    return TaskManager(include_path=str(task.folder), include_defaults=False)


@contextlib.contextmanager
def _inside(folder: Path | None) -> Iterator[None]:
    """Work in the folder of a task's file, which its data is named from."""
    before = Path.cwd()
    if folder is not None:
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
