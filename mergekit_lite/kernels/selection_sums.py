"""What `sce` asks of a tensor: the variance of its entries, and squares of what varies most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import kernel
from mergekit_lite.kernels.lanes import sum_of_products
from mergekit_lite.kernels.selection import select, variance
from mergekit_lite.kernels.sums import SUM_BLOCK
from mergekit_lite.kernels.tile import load_inputs


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
    mean, spread, x = work[1], work[2], work[4:]
    bits = spread.view(np.uint32)
    for start in range(0, count, SUM_BLOCK):
        n = min(SUM_BLOCK, count - start)
        load_inputs(raw, at, code, is_delta, False, bad, start, n, work)
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
    mean, spread, x = work[1], work[2], work[4:]
    for number in range((count + SUM_BLOCK - 1) // SUM_BLOCK):
        start = number * SUM_BLOCK
        n = min(SUM_BLOCK, count - start)
        load_inputs(raw, at, code, is_delta, False, bad, start, n, work)
        variance(x, experts, n, mean, spread)
        select(x, experts, n, first + start, threshold, until, spread)
        for e in range(experts):
            squares[number, e] = sum_of_products(x[e], x[e], n)
