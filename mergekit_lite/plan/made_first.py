"""What making tensors that no input has takes, before the rows run."""

from __future__ import annotations

from math import prod

from mergekit_lite.plan.types import Plan


def making_bytes(plan: Plan) -> int:
    """Return the bytes of memory that are worked in while they are made."""
    working: int = plan.moe.get("merged", {}).get("working", 0)
    return working


def made_bytes(plan: Plan) -> int:
    """Return the bytes of disk that they take until the output is whole."""
    made = plan.moe.get("merged", {}).get("made", ())
    return sum(4 * prod(one["shape"]) for one in made)
