"""Which rows the fused CPU kernels run; the torch chain runs all others.

What they know is decided here alone: `engine/program.py` compiles it, and what a row takes of
memory and time follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.kernels import enabled
from mergekit_lite.ops import OpSpec, registry
from mergekit_lite.plan.types import Job

_TRANSFORMS = frozenset(
    {"magnitude", "breadcrumbs", "graft", "magprune", "dare", "deviation", "norm_share"}
)
_POSTS = frozenset({"scale", "consensus_mask"})
_ENTRY_BY_ENTRY = frozenset(
    {"linear", "task_arithmetic", "take", "passthrough", "magmax", "ram", "consensus", "nearswap"}
)
_OF_STORED_INPUTS = frozenset({"sce", "arcee_fusion", "ramplus"})
"""Combines with statistics of their own kind, which are taken of inputs as they are stored."""
_ELECTIONS = {
    "agg": ("mean", "sum", "max"),
    "elect": ("mass", "count"),
    "zero_sign": ("plus", "none"),
}


def is_fused(job: Job, device: str = "cpu") -> bool:
    """Return whether the kernels run a row: they know it, are turned on, and no GPU is used."""
    return device == "cpu" and enabled() and is_known(job)


def is_known(job: Job) -> bool:
    """Return whether the kernels know all steps of a row with their parameters."""
    specs = registry()
    steps = [(specs[step.op], step) for step in job.steps]
    changed = any(spec.kind == "transform" for spec, _ in steps)
    if job.fusion is not None or not any(spec.kind == "combine" for spec, _ in steps):
        return False  # an adapter's factors are made in torch
    if sum(spec.name == "consensus_mask" for spec, _ in steps) > 1:
        return False
    return all(_is_known(spec, {**spec.defaults(), **step.params}, changed) for spec, step in steps)


def _is_known(spec: OpSpec, params: Mapping[str, Any], changed: bool) -> bool:
    """Return whether the kernels know an op, after transforms where inputs are `changed`."""
    if spec.kind == "transform":
        return spec.name in _TRANSFORMS
    if spec.kind == "post":
        return spec.name in _POSTS
    if spec.name == "sign_consensus":
        return all(params[name] in known for name, known in _ELECTIONS.items())
    if spec.name in _OF_STORED_INPUTS or spec.blend_each is not None:
        return not changed
    if spec.blend is not None:
        return not changed and all(needs.asked(params, 1) for needs in spec.statistics)
    by_expert = any(isinstance(value, Mapping) for value in params.values())
    return spec.name in _ENTRY_BY_ENTRY and (spec.name == "consensus" or not by_expert)
