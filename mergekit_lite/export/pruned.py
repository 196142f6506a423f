"""Tells which experts of a pruned model stayed, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergekit_lite.plan.digests import file_sha256
from mergekit_lite.plan.types import Plan


def pruned_facts(plan: Plan) -> dict[str, Any]:
    """Return what the manifest of a pruned model says."""
    pruned = plan.moe["pruned"]
    stats = pruned["prune"].get("stats")
    if not stats:
        return dict(pruned)
    kind = "outputs" if pruned["method"] == "naee" else "rates"
    return {**pruned, "statistics": statistic_sums(Path(plan.folder), stats, kind)}


def statistic_sums(folder: Path, stats: str, kind: str) -> dict[str, str]:
    """Return the sha256 of every file of a kind of statistics.

    Args:
        folder: from which they are named.
        stats: their folder.
        kind: of them.
    """
    files = sorted((folder / Path(stats).expanduser() / kind).glob("*"))
    return {file.name: file_sha256(file) for file in files}


def pruned_text(pruned: Mapping[str, Any]) -> str:
    """Return what a card says of a model that experts were left out of."""
    modules = pruned["modules"].values()
    kept, experts = len(next(iter(modules))["kept"]), next(iter(modules))["experts"]
    return (
        f"Of the {experts} experts of each routed layer {kept} are left, chosen by"
        f" `{pruned['method']}`; they are the same bytes as before. `moe_manifest.json` says which."
    )
