"""What `sce` asks of a tensor: the variance of its entries, and squares of what varies most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel
from mergekit_lite.kernels.codec import decode
from mergekit_lite.kernels.lanes import sum_of_products
from mergekit_lite.kernels.selection import select, variance
from mergekit_lite.kernels.sums import SUM_BLOCK
from mergekit_lite.kernels.tile import load_input

_WIDTHS = np.array([2, 2, 4, 8], np.int64)
_ZERO = np.float32(0.0)


@inlined
def load_deltas(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    bad: NDArray[np.int64],
    start: int,
    n: int,
    base: NDArray[np.float32],
    x: NDArray[np.float32],
) -> None:
    """Write all experts' deltas of a block to `x`; `base` is 0 where no base is read."""
    if code[0] >= 0:
        bad[0] += decode(raw, at[0] + start * _WIDTHS[code[0]], code[0], base, n)
    for e in range(at.shape[0] - 1):
        bad[e + 1] += load_input(e + 1, raw, at, code, is_delta, False, base, start, n, x[e])


@kernel(
    "u1[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "f4[:,::1]", "i8[::1]", "i8", "f4[::1]"
)  # fmt: skip
def variance_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    varying: NDArray[np.int64],
    count: int,
    out: NDArray[np.float32],
) -> None:
    """Write the variance of every entry of a tile; `varying[0]` gains those that are not 0."""
    experts = at.shape[0] - 1
    base, mean, spread, x = work[0], work[1], work[2], work[4:]
    bits = spread.view(np.uint32)
    for j in range(SUM_BLOCK):
        base[j] = _ZERO
    for start in range(0, count, SUM_BLOCK):
        n = min(SUM_BLOCK, count - start)
        load_deltas(raw, at, code, is_delta, bad, start, n, base, x)
        variance(x, experts, n, mean, spread)
        nonzero = np.uint32(0)
        part = out[start : start + n]
        for j in range(n):
            nonzero = np.uint32(nonzero + np.uint32(bits[j] != 0))
            part[j] = spread[j]
        varying[0] += np.int64(nonzero)


@kernel(
    "u1[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "f4[:,::1]", "u4", "i8", "i8", "i8",
    "f8[:,::1]",
)  # fmt: skip
def selected_squares_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    threshold: np.uint32,
    until: int,
    first: int,
    count: int,
    squares: NDArray[np.float64],
) -> None:
    """Write each expert's sum of squares of what is selected, for each block of a tile.

    `squares` has the shape (blocks, experts); the tile starts at a multiple of 4096.
    """
    experts = at.shape[0] - 1
    base, mean, spread, x = work[0], work[1], work[2], work[4:]
    for j in range(SUM_BLOCK):
        base[j] = _ZERO
    for number in range((count + SUM_BLOCK - 1) // SUM_BLOCK):
        start = number * SUM_BLOCK
        n = min(SUM_BLOCK, count - start)
        load_deltas(raw, at, code, is_delta, bad, start, n, base, x)
        variance(x, experts, n, mean, spread)
        select(x, experts, n, first + start, threshold, until, spread)
        for e in range(experts):
            squares[number, e] = sum_of_products(x[e], x[e], n)
