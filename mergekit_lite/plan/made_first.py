"""What making tensors that no input has takes, before the rows run."""

from __future__ import annotations

from math import prod
from pathlib import Path

from mergekit_lite.plan.types import Plan

_PADDED = 1.25
"""Entries for each token of texts side by side, which are of about one length."""


def making_bytes(plan: Plan) -> int:
    """Return the bytes of memory that are worked in while they are made."""
    working: int = plan.moe.get("merged", {}).get("working", 0)
    return working


def made_bytes(plan: Plan) -> int:
    """Return the bytes of disk that they take until the output is whole."""
    made = plan.moe.get("merged", {}).get("made", ())
    tensors: int = sum(4 * prod(one["shape"]) for one in made)
    return tensors + _states(plan)


def _states(plan: Plan) -> int:
    """Return the bytes of hidden states that are kept while a loss is followed back."""
    carve = plan.moe.get("carve", {})
    if carve.get("method") != "gradient":
        return 0
    path = Path(plan.folder) / carve["data"]
    # No token is less than a byte, but for those at ends.
    tokens = min(int(carve["tokens"]), path.stat().st_size if path.is_file() else 0)
    layers = 1 + max((job.layer for job in plan.jobs if job.layer is not None), default=0)
    return int(_PADDED * 4 * tokens * plan.moe["hidden"] * layers)
