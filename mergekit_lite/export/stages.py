"""Stages that are written before they are used: each an ordinary merge beside the output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.engine.events import Event
from mergekit_lite.errors import DataError
from mergekit_lite.export.manifest import REPORT_FILE
from mergekit_lite.plan.digests import DigestCache
from mergekit_lite.plan.lock import LOCK_FILE, changed_inputs, input_digests, lock_inputs, read_lock
from mergekit_lite.plan.stages import KEPT, leaf_models, with_results
from mergekit_lite.plan.types import Plan
from mergekit_lite.sources import Model, resolve

if TYPE_CHECKING:
    from mergekit_lite.engine.options import ExpertReport, Options

Merge = Callable[[Plan, Mapping[str, Model], Path, "Options", Callable[[Event], None]], Any]


def stage_folder(out: Path, name: str) -> Path:
    """Return the folder in which the result of a stage is written."""
    return out.with_name(f"{out.name}.{name}")


def write_stages(
    plan: Plan,
    models: Mapping[str, Model],
    out: Path,
    options: Options,
    emit: Callable[[Event], None],
    merge: Merge,
) -> dict[str, Model]:
    """Write every stage that must be, and return the models with the results in their place.

    A result that is there already, of the same plan and the same inputs, is used as it is.

    Args:
        plan: of the whole.
        models: its inputs.
        out: folder of the output; results of stages lie beside it.
        options: how to run.
        emit: called with events.
        merge: runs a plan into a folder.
    """
    results: dict[str, Model] = {}
    by_name = dict(_stages_in(models))
    for name, reason in plan.written.items():
        stage = replace(plan.stages[name], stages=dict(_within(by_name[name], plan)))
        parts, folder = by_name[name].parts, stage_folder(out, name)
        if _is_there(stage, parts, folder):
            emit(Event("note", text=f"stage `{name}`: `{folder}` holds its result already"))
        else:
            emit(Event("note", text=f"stage `{name}` is written to `{folder}`: {reason}"))
            merge(stage, with_results(parts, results), folder, options, emit)
        results[name] = resolve(str(folder), relative_to=folder.parent)
    return with_results(models, results)


def with_written(
    plan: Plan, out: Path, inputs: Mapping[str, ExpertReport]
) -> dict[str, ExpertReport]:
    """Return what experts gave, with those inside stages that have been written.

    These are called `STAGE/EXPERT`, as those of stages that stream through. A result that was there
    already says it too.
    """
    from mergekit_lite.engine.options import ExpertReport

    found: dict[str, ExpertReport] = {}
    for stage in plan.written:
        path = stage_folder(out, stage) / REPORT_FILE
        if not path.is_file():
            continue  # a result that is used again is its weights: nothing else of it is needed
        told = json.loads(path.read_text())
        for name, part in told["inputs"].items():
            if "tensors_compared" in part:
                # Those of stages within it are told by these stages' names.
                key = name if "/" in name else f"{stage}/{name}"
                found[key] = ExpertReport(
                    part["tensors_matched"],
                    part["tensors_compared"],
                    part["tensors_changed"],
                    part["delta_norm"],
                )
    # A stage that streams into one that was written, and into rows here, was seen whole there.
    here = {
        name: part
        for name, part in inputs.items()
        if name not in found or part.measured > found[name].measured
    }
    return {**found, **here}


def remove_written(plan: Plan, out: Path) -> None:
    """Remove the results of stages that nobody has asked to keep."""
    for name, reason in plan.written.items():
        if reason != KEPT:
            shutil.rmtree(stage_folder(out, name), ignore_errors=True)


def _stages_in(models: Mapping[str, Model]) -> Iterator[tuple[str, Model]]:
    for model in models.values():
        if model.plan is not None:
            yield from _stages_in(model.parts)
            yield model.stage, model


def _within(stage: Model, plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Yield the stages that a stage uses, those first that others use."""
    return ((name, plan.stages[name]) for name in dict(_stages_in(stage.parts)))


def _is_there(stage: Plan, parts: Mapping[str, Model], folder: Path) -> bool:
    if not (folder / LOCK_FILE).is_file():
        return False
    try:
        lock = read_lock(folder / LOCK_FILE)
    except DataError:
        return False
    if lock.get("plan") != stage.content_digest():
        return False
    cache = DigestCache()
    digests = input_digests(stage, cache, models=leaf_models(parts))
    cache.save()
    sizes = {file: (folder / file) for file in lock["outputs"]}
    whole = all(
        path.is_file() and path.stat().st_size == lock["outputs"][file]["size"]
        for file, path in sizes.items()
    )
    return whole and not changed_inputs(lock, lock_inputs(stage, digests))
