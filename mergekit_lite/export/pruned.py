"""Writes which experts of a pruned model stayed, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mergekit_lite.export.labels import short_name
from mergekit_lite.plan.digests import file_sha256
from mergekit_lite.plan.types import Plan


def write_pruned(plan: Plan, folder: Path, name: str, version: int) -> str:
    """Write the manifest of a pruned model and return its name.

    Args:
        plan: what was run.
        folder: of the output, which exists.
        name: of the file.
        version: of its format.
    """
    pruned = plan.moe["pruned"]
    manifest: dict[str, Any] = {
        "manifest_version": version,
        "model": short_name(plan.inputs["base"]),
        **pruned,
    }
    if stats := pruned["prune"].get("stats"):
        folder_of_stats = Path(plan.folder) / Path(stats).expanduser()
        manifest["statistics"] = {
            file.name: file_sha256(file) for file in sorted((folder_of_stats / "rates").iterdir())
        }
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / name).write_text(text + "\n", encoding="utf-8")
    return name
