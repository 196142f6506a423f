"""`merge_report.json`, the lock and the index: what was done, from what, and where it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite import __version__
from mergekit_lite.checkpoint.index import INDEX_SUFFIX, index_text, part_of
from mergekit_lite.export.labels import short_name, stored_dtypes, without_folders
from mergekit_lite.folders import write_json
from mergekit_lite.plan.layout import job_bytes, stored_name
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
                "kind": "stage" if source.stage else source.kind,
                "tensors_matched": source.matched,
                "tensors_missing": list(source.missing),
                "tensors_extra": list(source.extra),
                **_contribution(report, name),
            }
            for name, source in {**plan.inputs, **plan.leaves}.items()
        },
        "output": {
            "tensors": len(plan.jobs),
            "tensors_merged": merged,
            "tensors_copied": len(plan.jobs) - merged,
            "bytes": sum(size for size, _ in report.shards.values()),
            "dtype": stored_dtypes(plan),
        },
        "run": {
            "seconds": round(report.seconds, 3),
            "bytes_read": report.bytes_read,
            "bytes_written": report.bytes_written,
            "resumed_shards": report.resumed_shards,
        },
        **({"layer_map": _layer_map(plan)} if plan.layer_map else {}),
        **({"found": dict(report.found)} if report.found else {}),
        "warnings": [without_folders(warning) for warning in warnings_of(plan, report)],
    }


def _layer_map(plan: Plan) -> list[dict[str, Any]]:
    """Return, for each layer of the output, the input and layer that it comes from."""
    return [{"layer": row["layer"], "from": dict(row["sources"])} for row in plan.layer_map]


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
    leaves = plan.leaves
    first: dict[tuple[str, ...], str] = {}
    warnings = []
    for name, files in digests.items():
        owner = first.setdefault(tuple(sorted(files.values())), name)
        if Path(leaves[owner].root) != Path(leaves[name].root):
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


def write_report(data: Mapping[str, Any], folder: Path) -> None:
    """Write `merge_report.json` into `folder`."""
    write_json(folder / REPORT_FILE, data)


def report_sha256(data: Mapping[str, Any]) -> str:
    """Return the sha256 of a report but for `run`, its part that no two runs have in common.

    It is what the lock holds of the report, so that locks of equal merges are equal.
    """
    kept = {key: value for key, value in data.items() if key != "run"}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_lock(
    plan: Plan,
    input_digests: Mapping[str, Mapping[str, str]],
    output_digests: Mapping[str, str],
    report: Mapping[str, Any],
    folder: Path,
) -> None:
    """Write `recipe.lock.yaml` into `folder`.

    Args:
        plan: what was run.
        input_digests: input -> file -> sha256.
        output_digests: file of `folder` -> sha256.
        report: content of `merge_report.json`.
        folder: holds every file of the output but the index, which comes last.
    """
    lock = lock_outputs(lock_inputs(plan, input_digests), folder, output_digests)
    lock["report"] = {"file": REPORT_FILE, "sha256_without_run": report_sha256(report)}
    facts = {}
    for name, index in _indexes(plan).items():
        data = index.encode()
        facts[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    lock["outputs"] = dict(sorted({**lock["outputs"], **facts}.items()))
    (folder / LOCK_FILE).write_text(lock_text(lock), encoding="utf-8")


def write_index(plan: Plan, folder: Path) -> None:
    """Write the index over several shards; a single shard has none."""
    for name, index in _indexes(plan).items():
        (folder / name).write_text(index, encoding="utf-8")


def _indexes(plan: Plan) -> dict[str, str]:
    """Return the text of each index by its file: one for each model of several shards."""
    found = {}
    for part in dict.fromkeys(part_of(shard.file) for shard in plan.shards):
        numbers = {n for n, shard in enumerate(plan.shards) if part_of(shard.file) == part}
        if len(numbers) == 1:
            continue
        jobs = [(job, plan.shards[job.shard].file) for job in plan.jobs if job.shard in numbers]
        names = {
            stored_name(part.name, file): file.rpartition("/")[2]
            for job, file in jobs
            for part in job.parts
        }
        nbytes = sum(job_bytes(job) for job, _ in jobs)
        entries = sum(prod(job.shape) for job, _ in jobs)
        found[part + INDEX_SUFFIX] = index_text(names, nbytes, entries)
    return found
