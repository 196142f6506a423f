"""Combines on one block: all experts' inputs to one result, in the order of the torch chain."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined

WEIGHTED_SUM: Final = 0
VOTE: Final = 1
FARTHEST: Final = 2
ACTIVE_MEAN: Final = 3
CLAIMED: Final = 4
CLIPPED: Final = 5
SELECTED: Final = 6
BY_ROW: Final = 7
BY_COLUMN: Final = 8
FUSION: Final = 9
SCALED_MEAN: Final = 10

MEAN: Final = 0
SUM: Final = 1
MAX: Final = 2

_ZERO = np.float32(0.0)


@inlined
def weighted_sum(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    weights: NDArray[np.float32],
    divisor: np.float32,
    out: NDArray[np.float32],
) -> None:
    """Write sum_i w_i x_i, divided by `divisor` unless that is 0, to `out[:n]`."""
    first, w = x[0], weights[0]
    for j in range(n):
        out[j] = w * first[j]
    for e in range(1, experts):
        row, w = x[e], weights[e]
        for j in range(n):
            out[j] = out[j] + w * row[j]
    if divisor != _ZERO:
        for j in range(n):
            out[j] = out[j] / divisor


@inlined
def vote(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    weights: NDArray[np.float32],
    by_count: bool,
    aggregate: int,
    zero_plus: bool,
    signed: bool,
    out: NDArray[np.float32],
    ballot: NDArray[np.float32],
    mass: NDArray[np.float32],
) -> None:
    """Elect a sign per entry and aggregate the inputs that agree with it (TIES, steps 2 and 3).

    A mean is divided by the sum of weights if `signed`, else by that of their magnitudes.
    """
    for j in range(n):
        ballot[j] = _ZERO
    for e in range(experts):
        row, w = x[e], weights[e]
        if by_count:
            for j in range(n):
                p = w * row[j]
                plus = np.float32(1.0) if p > _ZERO else _ZERO
                minus = np.float32(1.0) if p < _ZERO else _ZERO
                ballot[j] = ballot[j] + (plus - minus)
        else:
            for j in range(n):
                ballot[j] = ballot[j] + w * row[j]
    tie = np.float32(1.0) if zero_plus else _ZERO
    for j in range(n):
        s = ballot[j]
        elected = tie if s == _ZERO else _ZERO  # a vote of inf - inf elects nobody
        elected = np.float32(-1.0) if s < _ZERO else elected
        ballot[j] = np.float32(1.0) if s > _ZERO else elected
        out[j] = _ZERO
        mass[j] = _ZERO
    # One product and one select an entry: nested conditions would keep LLVM from vectorising.
    for e in range(experts):
        row, w = x[e], weights[e]
        part = w if signed else abs(w)
        if aggregate == MAX:
            for j in range(n):
                p = w * row[j]
                agreeing = p if p * ballot[j] > _ZERO else _ZERO
                out[j] = agreeing if abs(agreeing) > abs(out[j]) else out[j]
        else:
            for j in range(n):
                p = w * row[j]
                agree = p * ballot[j] > _ZERO
                out[j] = out[j] + (p if agree else _ZERO)
                mass[j] = mass[j] + (part if agree else _ZERO)
    if aggregate == MEAN:
        for j in range(n):
            m = mass[j]
            mean = out[j] / (m if m != _ZERO else np.float32(1.0))
            out[j] = mean if m != _ZERO else _ZERO


@inlined
def largest(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    weights: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write, of every entry, the weighted input of largest magnitude, the last of equal ones."""
    first, w = x[0], weights[0]
    for j in range(n):
        out[j] = w * first[j]
    for e in range(1, experts):
        row, w = x[e], weights[e]
        for j in range(n):
            p = w * row[j]
            out[j] = p if abs(p) >= abs(out[j]) else out[j]


@inlined
def active_mean(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    limit: np.float32,
    out: NDArray[np.float32],
    active: NDArray[np.float32],
) -> None:
    """Write the mean of the inputs whose magnitude is above `limit`, 0 where none is."""
    one = np.float32(1.0)
    for j in range(n):
        out[j] = _ZERO
        active[j] = _ZERO
    for e in range(experts):
        row = x[e]
        for j in range(n):
            counts = abs(row[j]) > limit
            out[j] = out[j] + (row[j] if counts else _ZERO)
            active[j] = active[j] + (one if counts else _ZERO)
    for j in range(n):
        out[j] = out[j] / max(active[j], one)


@inlined
def scaled_mean(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    limit: np.float32,
    scales: NDArray[np.float32],
    out: NDArray[np.float32],
    active: NDArray[np.float32],
) -> None:
    """Write what `active_mean` does; what only one input has there is multiplied by its scale."""
    one = np.float32(1.0)
    for j in range(n):
        out[j] = _ZERO
        active[j] = _ZERO
    for e in range(experts):
        row = x[e]
        for j in range(n):
            active[j] = active[j] + (one if abs(row[j]) > limit else _ZERO)
    for e in range(experts):
        row, scale = x[e], scales[e]
        for j in range(n):
            value = row[j] * scale if active[j] == one else row[j]
            out[j] = out[j] + (value if abs(row[j]) > limit else _ZERO)
    for j in range(n):
        out[j] = out[j] / max(active[j], one)


@inlined
def claimed(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    weights: NDArray[np.float32],
    limits: NDArray[np.float32],
    at_least: int,
    out: NDArray[np.float32],
    claims: NDArray[np.float32],
) -> None:
    """Write the weighted sum where at least so many inputs outweigh their limit times the others.

    Input i has the limit `limits[i]`.
    """
    weighted_sum(x, experts, n, weights, _ZERO, out)
    for j in range(n):
        claims[j] = _ZERO
    for e in range(experts):
        row, w, limit = x[e], weights[e], limits[e]
        for j in range(n):
            p = w * row[j]
            mine = abs(p) > abs(np.float32(out[j] - p)) * limit
            claims[j] = claims[j] + (np.float32(1.0) if mine else _ZERO)
    drop_unclaimed(n, at_least, out, claims)


@inlined
def masked(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    limits: NDArray[np.float32],
    at_least: int,
    out: NDArray[np.float32],
    claims: NDArray[np.float32],
) -> None:
    """Zero what fewer inputs claim: those larger than their limit times the distance to it."""
    for j in range(n):
        claims[j] = _ZERO
    for e in range(experts):
        row, limit = x[e], limits[e]
        for j in range(n):
            mine = abs(row[j]) > abs(np.float32(out[j] - row[j])) * limit
            claims[j] = claims[j] + (np.float32(1.0) if mine else _ZERO)
    drop_unclaimed(n, at_least, out, claims)


@inlined
def drop_unclaimed(
    n: int, at_least: int, out: NDArray[np.float32], claims: NDArray[np.float32]
) -> None:
    """Zero the entries with fewer claims than wanted."""
    enough = np.float32(at_least)
    for j in range(n):
        out[j] = out[j] if claims[j] >= enough else _ZERO


@inlined
def clipped(x: NDArray[np.float32], n: int, limit: np.float32, out: NDArray[np.float32]) -> None:
    """Write the first input, cut off at -limit and limit."""
    first = x[0]
    for j in range(n):
        high = limit if first[j] > limit else first[j]
        out[j] = -limit if high < -limit else high


@inlined
def weighted_rows(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    start: int,
    width: int,
    weights: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the sum of inputs by weights of their row; `x` begins with entry `start` of row 0."""
    done = 0
    while done < n:
        row = (start + done) // width
        end = min(n, (row + 1) * width - start)
        part = out[done:end]
        for e in range(experts):
            values, w = x[e, done:end], weights[row * experts + e]
            if e == 0:
                for j in range(end - done):
                    part[j] = w * values[j]
            else:
                for j in range(end - done):
                    part[j] = part[j] + w * values[j]
        done = end


@inlined
def weighted_columns(
    x: NDArray[np.float32],
    experts: int,
    n: int,
    first: int,
    width: int,
    weights: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the sum of inputs by weights of their column; `first` is a flat index."""
    done = 0
    while done < n:
        column = (first + done) % width
        end = min(n, done + width - column)
        part = out[done:end]
        for e in range(experts):
            begin = e * width + column
            values, w = x[e, done:end], weights[begin : begin + end - done]
            if e == 0:
                for j in range(end - done):
                    part[j] = w[j] * values[j]
            else:
                for j in range(end - done):
                    part[j] = part[j] + w[j] * values[j]
        done = end
