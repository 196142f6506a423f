"""The fused loop: raw tiles of all inputs in, one tile of the output out."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel, reported
from mergekit_lite.kernels.codec import decode, encode
from mergekit_lite.kernels.combine import (
    ACTIVE_MEAN,
    BY_COLUMN,
    BY_ROW,
    CLAIMED,
    CLIPPED,
    FARTHEST,
    SCALED_MEAN,
    SELECTED,
    VOTE,
    active_mean,
    claimed,
    clipped,
    largest,
    masked,
    scaled_mean,
    vote,
    weighted_columns,
    weighted_rows,
    weighted_sum,
)
from mergekit_lite.kernels.row_band import band_rows
from mergekit_lite.kernels.row_drop import drop_rows
from mergekit_lite.kernels.row_marks import keep_marked
from mergekit_lite.kernels.selection import select, shared, variance
from mergekit_lite.kernels.steps import (
    BAND,
    CUT,
    DARE,
    FAR,
    ROW_BAND,
    ROW_DROP,
    ROW_KEPT,
    drop_random,
    drop_top,
    keep_far,
    keep_top,
)

BLOCK: Final = 2048
"""Entries worked on at a time: the fp32 scratch of four inputs stays in L1 and L2."""

_WIDTHS = np.array([2, 2, 4, 8], np.int64)
_ZERO = np.float32(0.0)


@inlined
def load_input(
    i: int,
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    weight_space: bool,
    base: NDArray[np.float32],
    block: int,
    n: int,
    x: NDArray[np.float32],
) -> int:
    """Write input `i` of a block to `x[:n]`: as a delta, or as a weight in weight space."""
    bad = 0
    if code[i] < 0:
        # Copied and not added to: an untouched -0.0 stays one.
        for j in range(n):
            x[j] = base[j] if weight_space else _ZERO
        return bad
    bad = int(decode(raw, at[i] + block * _WIDTHS[code[i]], code[i], x, n))
    if weight_space and is_delta[i] != 0:
        for j in range(n):
            x[j] = base[j] + x[j]
    elif not weight_space and is_delta[i] == 0:
        for j in range(n):
            x[j] = x[j] - base[j]
    return bad


@inlined
def load_inputs(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    weight_space: bool,
    bad: NDArray[np.int64],
    start: int,
    n: int,
    work: NDArray[np.float32],
) -> None:
    """Write the base's entries (0 where none is read) to `work[0]`, all inputs' from `work[4]` on.

    `bad` gains, for each, the entries that are not finite.
    """
    base = work[0]
    if code[0] >= 0:
        bad[0] += decode(raw, at[0] + start * _WIDTHS[code[0]], code[0], base, n)
    else:
        for j in range(n):
            base[j] = _ZERO
    for i in range(1, at.shape[0]):
        bad[i] += load_input(i, raw, at, code, is_delta, weight_space, base, start, n, work[3 + i])


@inlined
def transform_input(
    kinds: NDArray[np.int64],
    floats: NDArray[np.float32],
    ints: NDArray[np.int64],
    steps: int,
    x: NDArray[np.float32],
    n: int,
    first: int,
    width: int,
    scratch: NDArray[np.int64],
) -> None:
    """Apply the first `steps` transforms of one expert to `x[:n]`, whose flat index is `first`."""
    for t in range(steps):
        kind, p = kinds[t], ints[t]
        if kind == CUT:
            keep_top(x, n, first, np.uint32(p[0]), p[1])
        elif kind == BAND:
            drop_top(x, n, first, np.uint32(p[0]), p[1])
            keep_top(x, n, first, np.uint32(p[2]), p[3])
        elif kind == DARE:
            drop_random(x, n, first, p[0], p[1], p[2], floats[t])
        elif kind == FAR:
            mean, limit = np.uint32(p[0]).view(np.float32), np.uint32(p[1]).view(np.float32)
            keep_far(x, n, mean, limit)
        elif kind == ROW_KEPT:
            keep_marked(x, n, first, width, scratch.view(np.uint8)[p[0] :], floats[t])
        elif kind == ROW_BAND:
            band_rows(x, n, width, p[0], p[1], scratch)
        elif kind == ROW_DROP:
            least, spread = np.int64(p[2]).view(np.float64), np.int64(p[3]).view(np.float64)
            drop_rows(x, n, first, width, p[0], p[1], least, spread, p[4] != 0, floats[t], scratch)


@reported
def sum_of_squares(x: NDArray[np.float32], n: int) -> float:
    """Return the sum of squares of `x[:n]`, for reports: its last digits depend on the CPU."""
    total = np.float32(0.0)
    for j in range(n):
        total += x[j] * x[j]
    return np.float64(total)


def work_shape(experts: int, block: int) -> tuple[int, int]:
    """Return the shape of the scratch memory that a kernel which loads inputs wants."""
    return 4 + experts, block


@kernel(
    "u1[::1]",
    "i8[::1]",
    "i8[::1]",
    "i8[::1]",
    "b1",
    "i8[:,::1]",
    "f4[:,::1]",
    "i8[:,:,::1]",
    "i8",
    "f4[::1]",
    "f4",
    "i8[::1]",
    "f4[::1]",
    "f4[:,::1]",
    "i8",
    "i8",
    "u1[::1]",
    "i8",
    "i8[::1]",
    "f8[::1]",
    "f4[:,::1]",
    "i8[::1]",
    "i8",
    "i8",
)
def merge_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    weight_space: bool,
    kinds: NDArray[np.int64],
    floats: NDArray[np.float32],
    ints: NDArray[np.int64],
    combine: int,
    weights: NDArray[np.float32],
    divisor: np.float32,
    options: NDArray[np.int64],
    posts: NDArray[np.float32],
    limits: NDArray[np.float32],
    width: int,
    block: int,
    out: NDArray[np.uint8],
    out_code: int,
    bad: NDArray[np.int64],
    norms: NDArray[np.float64],
    work: NDArray[np.float32],
    scratch: NDArray[np.int64],
    first: int,
    count: int,
) -> None:
    """Merge `count` entries from flat index `first`; the arguments are those of `Program`.

    `bad[i]` and `norms[i]` gain, for input i (0 is the base), the entries that are not finite and
    the sum of the squares of its delta; `bad[-1]` counts the output's non-finite entries. `work`
    and `scratch` are memory: of `work_shape` and of `row_scratch`.
    """
    inputs = at.shape[0]
    experts = inputs - 1
    base, merged, ballot, mass, x = work[0], work[1], work[2], work[3], work[4:]
    for j in range(block):
        base[j] = _ZERO
    for start in range(0, count, block):
        n = min(block, count - start)
        if code[0] >= 0:
            bad[0] += decode(raw, at[0] + start * _WIDTHS[code[0]], code[0], base, n)
        for e in range(experts):
            row = x[e]
            bad[e + 1] += load_input(
                e + 1, raw, at, code, is_delta, weight_space, base, start, n, row
            )
            if not weight_space:
                squares = sum_of_squares(row, n)
                norms[e + 1] += squares
            transform_input(
                kinds[e], floats[e], ints[e], kinds.shape[1], row, n, first + start, width,
                scratch,
            )  # fmt: skip
        if combine == VOTE:
            vote(
                x, experts, n, weights, options[0] != 0, options[1], options[2] != 0,
                options[3] != 0, merged, ballot, mass,
            )  # fmt: skip
        elif combine == FARTHEST:
            largest(x, experts, n, weights, merged)
        elif combine == ACTIVE_MEAN:
            active_mean(x, experts, n, divisor, merged, mass)
        elif combine == SCALED_MEAN:
            scaled_mean(x, experts, n, divisor, weights, merged, mass)
        elif combine == CLAIMED:
            claimed(x, experts, n, weights, limits[0], options[1], merged, mass)
        elif combine == CLIPPED:
            clipped(x, n, divisor, merged)
        elif combine == SELECTED:
            if options[2] != 0:
                variance(x, experts, n, ballot, mass)
                select(x, experts, n, first + start, np.uint32(options[0]), options[1], mass)
            shared(x, experts, n, weights, merged, ballot, mass)
        elif combine == BY_ROW:
            weighted_rows(x, experts, n, start, width, weights, merged)
        elif combine == BY_COLUMN:
            weighted_columns(x, experts, n, first + start, width, weights, merged)
        else:
            weighted_sum(x, experts, n, weights, divisor, merged)
        for k in range(posts.shape[0]):
            if k == options[4]:
                # Experts claim by their deltas as they came, which transforms have overwritten.
                for e in range(experts):
                    load_input(e + 1, raw, at, code, is_delta, weight_space, base, start, n, x[e])
                masked(x, experts, n, limits[1], options[5], merged, mass)
            for j in range(n):
                merged[j] = merged[j] * posts[k]
        if not weight_space:
            for j in range(n):
                y = merged[j]
                merged[j] = base[j] if y == _ZERO else base[j] + y
        bad[-1] += encode(merged, n, out, start * _WIDTHS[out_code], out_code)
