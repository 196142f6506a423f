"""`merge_report.json`, the lock and the index: what was done, from what, and where it lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite import __version__
from mergekit_lite.checkpoint.index import INDEX_NAME, index_text
from mergekit_lite.export.labels import short_name
from mergekit_lite.plan.layout import job_bytes
from mergekit_lite.plan.lock import LOCK_FILE, lock_inputs, lock_outputs, lock_text
from mergekit_lite.plan.names import plural
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    from mergekit_lite.engine.options import Report

REPORT_FILE = "merge_report.json"
REPORT_VERSION = 1


def report_data(plan: Plan, report: Report) -> dict[str, Any]:
    """Return what `merge_report.json` holds, as plain data without any path."""
    merged = sum(1 for job in plan.jobs if job.kind == "merge")
    return {
        "report_version": REPORT_VERSION,
        "tool": f"mergekit-lite {__version__}",
        "plan": plan.content_digest(),
        "inputs": {
            name: {
                "model": short_name(source),
                "kind": source.kind,
                "tensors_matched": source.matched,
                "tensors_missing": list(source.missing),
                "tensors_extra": list(source.extra),
                **_contribution(report, name),
            }
            for name, source in plan.inputs.items()
        },
        "output": {
            "tensors": len(plan.jobs),
            "tensors_merged": merged,
            "tensors_copied": len(plan.jobs) - merged,
            "bytes": sum(size for size, _ in report.shards.values()),
            "dtype": plan.dtype,
        },
        "run": {
            "seconds": round(report.seconds, 3),
            "bytes_read": report.bytes_read,
            "bytes_written": report.bytes_written,
            "resumed_shards": report.resumed_shards,
        },
        "warnings": warnings_of(plan, report),
    }


def warnings_of(plan: Plan, report: Report) -> list[str]:
    """Return the warnings of the plan, then those of the run, each once."""
    idle = [
        f"expert `{name}` does not differ from the base in any of {plural(seen.measured, 'tensor')}"
        for name, seen in report.inputs.items()
        if seen.measured and not seen.changed
    ]
    return list(dict.fromkeys([*plan.warnings, *report.warnings, *idle]))


def copies(plan: Plan, digests: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a warning for each input whose files hold the very bytes of another input's.

    Args:
        plan: whose inputs are compared; that two of them are one folder is said at plan time.
        digests: input -> weight file -> sha256.
    """
    first: dict[tuple[str, ...], str] = {}
    warnings = []
    for name, files in digests.items():
        owner = first.setdefault(tuple(sorted(files.values())), name)
        if Path(plan.inputs[owner].root) != Path(plan.inputs[name].root):
            other = "the base" if owner == "base" else f"expert `{owner}`"
            warnings.append(f"expert `{name}` holds the same weights as {other}, byte for byte")
    return warnings


def _contribution(report: Report, name: str) -> dict[str, Any]:
    seen = report.inputs.get(name)
    if seen is None:
        return {}
    # Rows that copy bytes or combine whole weights do not read the base: nothing to compare with.
    return {
        "tensors_compared": seen.measured,
        "tensors_changed": seen.changed,
        "delta_norm": seen.delta_norm,
    }


def write_report(plan: Plan, report: Report, folder: Path) -> None:
    """Write `merge_report.json` into `folder`."""
    text = json.dumps(report_data(plan, report), indent=2, ensure_ascii=False)
    (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")


def write_lock(
    plan: Plan,
    input_digests: Mapping[str, Mapping[str, str]],
    output_digests: Mapping[str, str],
    folder: Path,
) -> None:
    """Write `recipe.lock.yaml` into `folder`, which holds every file of `output_digests`."""
    lock = lock_outputs(lock_inputs(plan, input_digests), folder, output_digests)
    (folder / LOCK_FILE).write_text(lock_text(lock), encoding="utf-8")


def write_index(plan: Plan, folder: Path) -> bool:
    """Write the index over several shards; a single shard has none. Return whether it was."""
    if len(plan.shards) == 1:
        return False
    names = {job.name: plan.shards[job.shard].file for job in plan.jobs}
    nbytes = sum(job_bytes(job) for job in plan.jobs)
    entries = sum(prod(job.shape) for job in plan.jobs)
    (folder / INDEX_NAME).write_text(index_text(names, nbytes, entries), encoding="utf-8")
    return True
