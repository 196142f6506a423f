"""Before and after experts are added to a routed model: what must be shared, what was added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit_lite.engine.events import Event
from mergekit_lite.export.labels import short_name
from mergekit_lite.plan.types import GATE, Plan
from mergekit_lite.sources import Model, resolve

FREEZE_FILE = "freeze_mask.json"
NEVER_CHOSEN = -1e4
"""Bias of an expert that no token chooses: scores lie between 0 and 1, logits near 0."""


def with_grown(
    plan: Plan, models: Mapping[str, Model], folder: Path, emit: Callable[[Event], None]
) -> dict[str, Model]:
    """Return the models with what added experts need that no input has.

    Args:
        plan: of a routed model with added experts.
        models: its inputs, opened.
        folder: where a file may be made.
        emit: called with events.

    Raises:
        DataError: a model that lends experts has other weights beside them than the base.
    """
    import numpy as np

    from mergekit_lite.moe.gate_file import GATE_FILE, write_tensors
    from mergekit_lite.moe.grow.rows import NEVER
    from mergekit_lite.moe.grow.same import require_same

    facts = plan.moe["grown"]
    emit(Event("note", text=grown_text(plan.moe)))
    compared = require_same(models, facts["same"])
    if compared:
        text = f"{compared:,} bytes beside the added experts are the base's, as they must be"
        emit(Event("note", text=text))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / GATE_FILE
    unfinished = path.with_suffix(".partial")
    write_tensors(unfinished, {NEVER: np.full((1,), NEVER_CHOSEN, np.float32)}, {})
    unfinished.replace(path)
    made = resolve(str(path), relative_to=folder)
    return {**models, GATE: replace(made, reference=GATE)}


def grown_text(moe: Mapping[str, Any]) -> str:
    """Return what was added to a routed model, in words."""
    facts = moe["grown"]
    added = ", ".join(map(_said, facts["added"]))
    return f"Experts added behind the {facts['experts_before']} of each layer: {added}."


def _said(one: Mapping[str, Any]) -> str:
    which = f"expert {one['expert']} of " if "expert" in one else ""
    chance = " (no token chooses it yet)" if one["router"] == "silent" else ""
    return f"{one['number']} is {which}`{one['model']}`{chance}"


def grown_facts(plan: Plan) -> dict[str, Any]:
    """Return what the manifest says of experts that were added."""
    grown = {key: value for key, value in plan.moe["grown"].items() if key != "same"}
    added = [
        {**one, "model": short_name(plan.inputs[one["model"]])}
        for one in plan.moe["grown"]["added"]
    ]
    compared = {source: len(pairs) for source, pairs in plan.moe["grown"]["same"].items()}
    return {**grown, "added": added, "tensors_compared": compared}


def frozen(plan: Plan) -> dict[str, Any]:
    """Return the tensors that are as before, and the first rows of those that grew."""
    before = plan.moe["grown"]["experts_before"]
    modules = tuple(f"{root}." for root in plan.moe["grown"]["modules"])
    whole, rows = [], {}
    for job in plan.jobs:
        inside = job.name.startswith(modules)
        number = job.name.partition(".experts.")[2].partition(".")[0] if inside else ""
        if inside and any(read.blocks for read in job.reads) and not number.isdigit():
            rows[job.name] = before
        elif not number.isdigit() or int(number) < before:
            whole.append(job.name)
    return {"frozen": whole, "frozen_experts": rows}
