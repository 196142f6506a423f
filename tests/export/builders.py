"""Plans, reports and finished folders for the tests of what goes around the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lite import api
from mergekit_lite.engine.options import ExpertReport, Report
from mergekit_lite.plan.types import Input, Job, Plan, Read, Shard, Step


def plan_of(recipe: Mapping[str, Any], **roots: Path) -> Plan:
    """Return a plan of one computed tensor whose inputs lie in `roots`."""
    inputs = {name: Input(f"./{name}", str(root), "checkpoint") for name, root in roots.items()}
    job = Job(
        "w",
        "BF16",
        (2,),
        0,
        64,
        "merge",
        (Read("math", "w"),),
        Read("base", "w"),
        (Step("task_arithmetic"),),
    )
    shard = Shard("model.safetensors", 68, "{}")
    return Plan(inputs, (job,), (shard,), 0, 1, "BF16", recipe=recipe)


def report_of(**inputs: ExpertReport) -> Report:
    """Return the report of a run of one shard."""
    return Report({"model.safetensors": (68, "0" * 64)}, inputs, 1.0, 8, 4)


def merged(folder: Path, recipe: Mapping[str, Any], **options: Any) -> Path:
    """Run a recipe into `folder` and return it."""
    api.run(recipe, folder, **options)
    return folder
