"""Inputs that a combine need not read, and results that are one of its inputs bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lite.ops import OpSpec
from mergekit_lite.ops._arithmetic import total_weight
from mergekit_lite.plan.types import Read

_SUMS = frozenset({"linear", "task_arithmetic"})
"""Ops that add weighted inputs, to which one of weight 0 adds nothing."""


def wanted(spec: OpSpec, names: Sequence[str], weights: Mapping[str, float]) -> list[str]:
    """Return the inputs that can change the result, or all where that would be none."""
    if spec.name not in _SUMS:
        return list(names)
    return [name for name in names if weights.get(name, 1.0) != 0] or list(names)


def least_inputs(spec: OpSpec) -> int:
    """Return how many inputs must be left after `wanted`."""
    return min(1, spec.experts[0]) if spec.name in _SUMS else spec.experts[0]


def same_as(
    spec: OpSpec, params: Mapping[str, Any], reads: Sequence[Read], weights: Sequence[float]
) -> Read | None:
    """Return the read whose bytes are the result, None where something is to be computed.

    Args:
        spec: a combine that works on whole weights.
        params: its parameters.
        reads: its inputs, none of them zero.
        weights: one for each read.
    """
    if spec.name == "slerp" and len(reads) == 2 and params.get("t") in (0, 1):
        return reads[int(params["t"])]
    if len(set(reads)) > 1:
        return None
    if spec.name == "linear" and (params.get("normalize", True) or total_weight(weights) == 1):
        return reads[0]  # a mean of one tensor with itself, whatever the weights
    if len(set(weights)) > 1:
        return None
    if spec.name == "passthrough":
        return reads[0] if params.get("scale", 1.0) == 1 else None
    # A weighted sum gives its only input back where it is divided by the weight.
    averages = params.get("normalize", True) is not False
    return reads[0] if spec.idempotent and averages else None
