"""What fitting routers costs, from a plan alone."""

from __future__ import annotations

from math import prod
from pathlib import Path

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.plan.row_memory import TEXT_BYTES
from mergekit_lite.plan.types import Plan

BATCH = 2048
"""Most entries of a batch of texts, padding counted, but for a longer single text."""
_PADDED = 1.25
"""Entries for each token: texts side by side are of about one length."""


def held_bytes(tokens: int, hidden: int, experts: int) -> int:
    """Return what is kept of one layer's texts while its router is fitted.

    Args:
        tokens: that are run.
        hidden: width of the residual stream.
        experts: of a layer.
    """
    states = int(2 * _PADDED * 4 * tokens * hidden)  # before the layer and behind it, again
    inputs = 3 * 4 * tokens * hidden
    return states + inputs + 8 * tokens * experts + 10 * 8 * experts * hidden


def memory(plan: Plan) -> int:
    """Return the bytes of resident memory, at most, that fitting a plan's routers takes."""
    asked, tokens = plan.moe["routers"], most_tokens(plan)
    shapes = [job.shape for job in plan.jobs if job.name in asked["rows"]]
    experts, hidden = max((shape for shape in shapes), default=(1, 1))
    layers: dict[int | None, int] = {}
    for job in plan.jobs:
        layers[job.layer] = layers.get(job.layer, 0) + prod(job.shape)
    stored = max((DTYPE_BYTES[job.dtype] for job in plan.jobs), default=4)
    weights = (8 + stored) * max(layers.values(), default=0)
    inner = max(hidden, max(job.shape[0] for job in plan.jobs if job.layer is not None))
    work = max(BATCH, int(asked["length"])) * (2 * inner + 8 * hidden) * 4
    first = int(_PADDED * 4 * tokens * hidden)
    return TEXT_BYTES + weights + work + first + held_bytes(tokens, hidden, experts)


def text(plan: Plan) -> str:
    """Return what is done, in words."""
    asked = plan.moe["routers"]
    return (
        f"`{asked['method']}`: texts (at most {most_tokens(plan):,} tokens) run through the merged"
        f" model, each routed layer twice; {len(asked['rows'])} routers are fitted"
    )


def most_tokens(plan: Plan) -> int:
    """Return an upper bound of tokens: no token is less than a byte, but for those at ends."""
    asked = plan.moe["routers"]
    files = [Path(plan.folder) / file for file in asked["data"].values()]
    sizes = [file.stat().st_size if file.is_file() else 0 for file in files]
    return sum(min(int(asked["tokens"]), size) for size in sizes)
