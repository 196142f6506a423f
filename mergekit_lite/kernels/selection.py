"""`sce` on a block: variances over the experts, what varies most, means by shares."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined
from mergekit_lite.kernels.steps import MAGNITUDE

EVERYTHING: Final = (0, 2**63 - 1)
"""The cut (threshold, until) that keeps every entry."""

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_LEAST = np.float32(2.0**-126)


@inlined
def variance(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    mean: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the population variance of each entry over the experts to `out[:n]`."""
    first, count = x[0], np.float32(experts)
    for j in range(n):
        mean[j] = _ZERO
    for e in range(1, experts):
        row = x[e]
        for j in range(n):
            mean[j] = mean[j] + (row[j] - first[j])
    for j in range(n):
        mean[j] = mean[j] / count
        out[j] = mean[j] * mean[j]
    for e in range(1, experts):
        row = x[e]
        for j in range(n):
            apart = np.float32(np.float32(row[j] - first[j]) - mean[j])
            out[j] = out[j] + apart * apart
    for j in range(n):
        out[j] = out[j] / count


@inlined
def select(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    first: int,
    threshold: np.uint32,
    until: int,
    spread: NDArray[np.float32],
) -> None:
    """Zero the entries whose spread is not among the largest, given as (threshold, until)."""
    bits = spread.view(np.uint32)
    edge = min(max(until - first, 0), n)
    for j in range(edge):
        spread[j] = _ONE if (bits[j] & MAGNITUDE) >= threshold else _ZERO
    for j in range(edge, n):
        spread[j] = _ONE if (bits[j] & MAGNITUDE) > threshold else _ZERO
    for e in range(experts):
        row = x[e]
        for j in range(n):
            row[j] = row[j] * spread[j]


@inlined
def shared(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    shares: NDArray[np.float32],
    out: NDArray[np.float32],
    sign: NDArray[np.float32],
    mass: NDArray[np.float32],
) -> None:
    """Write the mean by shares of the inputs that agree with the sign of their sum."""
    first = x[0]
    for j in range(n):
        sign[j] = first[j]
        out[j] = _ZERO
        mass[j] = _ZERO
    for e in range(1, experts):
        row = x[e]
        for j in range(n):
            sign[j] = sign[j] + row[j]
    for j in range(n):
        sign[j] = np.float32(-1.0) if sign[j] < _ZERO else _ONE
    for e in range(experts):
        row, share = x[e], shares[e]
        for j in range(n):
            with_sign = np.float32(row[j] * sign[j])
            agreeing = _ZERO if with_sign < _ZERO else with_sign
            out[j] = out[j] + agreeing * share
            mass[j] = mass[j] + (share if agreeing > _ZERO else _ZERO)
    for j in range(n):
        out[j] = np.float32(out[j] * sign[j]) / max(mass[j], _LEAST)
