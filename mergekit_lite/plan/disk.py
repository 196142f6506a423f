"""What is free, and what an interrupted run has left, where an output goes."""

from __future__ import annotations

import shutil
from pathlib import Path

from mergekit_lite.plan.types import Plan


def _existing(folder: Path) -> Path:
    """Return the nearest folder that is there, which lies on the same filesystem-to-be."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def free_at(out: Path) -> int:
    """Return the bytes that are free where a folder is, or would be made."""
    return shutil.disk_usage(_existing(out)).free


def already_written(plan: Plan, out: Path) -> int:
    """Return the bytes that an interrupted run has left where this one goes on."""
    partial = out.with_name(out.name + ".partial")
    total = 0
    for shard in plan.shards:
        for file in (partial / shard.file, partial / f"{shard.file}.partial"):
            if file.is_file():
                # Allocated blocks, not length: a file with planned offsets is sparse at first.
                total += min(shard.nbytes, file.stat().st_blocks * 512)
                break
    return total
