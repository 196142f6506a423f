"""Sums over whole tensors in fp64, in an order that does not depend on tiles or threads.

Blocks of 4096 entries by flat index; in a block, entry j goes to lane j % 16, lanes are added in
order; the caller adds the blocks with `math.fsum`, which rounds once whatever their order.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import kernel
from mergekit_lite.kernels.codec import decode
from mergekit_lite.kernels.lanes import sum_of_magnitudes, sum_of_products
from mergekit_lite.kernels.steps import drop_random
from mergekit_lite.kernels.tile import load_input, transform_input

SUM_BLOCK: Final = 4096

_WIDTHS = np.array([2, 2, 4, 8], np.int64)


@kernel(
    "u1[::1]",
    "i8[::1]",
    "i8[::1]",
    "i8[::1]",
    "b1",
    "i8[::1]",
    "f4[:,::1]",
    "i8",
    "f8[:,:,::1]",
)
def gram_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    weight_space: bool,
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    count: int,
    gram: NDArray[np.float64],
) -> None:
    """Write inner products of all inputs of a tile that starts at a multiple of 4096.

    `gram` has the shape (blocks, inputs, inputs); its upper triangle is filled. `work` is
    memory: `work_shape` for blocks of `SUM_BLOCK`.
    """
    experts = at.shape[0] - 1
    base, x = work[0], work[4:]
    for j in range(SUM_BLOCK):
        base[j] = np.float32(0.0)
    for number in range((count + SUM_BLOCK - 1) // SUM_BLOCK):
        start = number * SUM_BLOCK
        n = min(SUM_BLOCK, count - start)
        if code[0] >= 0:
            bad[0] += decode(raw, at[0] + start * _WIDTHS[code[0]], code[0], base, n)
        for e in range(experts):
            bad[e + 1] += load_input(
                e + 1, raw, at, code, is_delta, weight_space, base, start, n, x[e]
            )
        for e in range(experts):
            for other in range(e, experts):
                gram[number, e, other] = sum_of_products(x[e], x[other], n)


@kernel(
    "u1[::1]",
    "i8[::1]",
    "i8[::1]",
    "i8[::1]",
    "i8[:,::1]",
    "f4[:,::1]",
    "i8[:,:,::1]",
    "i8[::1]",
    "i8[::1]",
    "f4[:,::1]",
    "i8[::1]",
    "i8",
    "i8",
    "f8[:,:,::1]",
)
def kept_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    kinds: NDArray[np.int64],
    floats: NDArray[np.float32],
    ints: NDArray[np.int64],
    depth: NDArray[np.int64],
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    scratch: NDArray[np.int64],
    first: int,
    count: int,
    absolute: NDArray[np.float64],
) -> None:
    """Write sums of the magnitudes that random drops see and of those that they keep.

    `depth[e]` is how many transforms of expert e precede its drop, -1 where none is asked about;
    `absolute` has the shape (blocks, experts, 2). The tile starts at a multiple of 4096.
    """
    experts = at.shape[0] - 1
    base, x = work[0], work[1]
    for j in range(SUM_BLOCK):
        base[j] = np.float32(0.0)
    for number in range((count + SUM_BLOCK - 1) // SUM_BLOCK):
        start = number * SUM_BLOCK
        n = min(SUM_BLOCK, count - start)
        if code[0] >= 0:
            bad[0] += decode(raw, at[0] + start * _WIDTHS[code[0]], code[0], base, n)
        for e in range(experts):
            steps = depth[e]
            if steps < 0:
                continue
            bad[e + 1] += load_input(e + 1, raw, at, code, is_delta, False, base, start, n, x)
            transform_input(kinds[e], floats[e], ints[e], steps, x, n, first + start, 0, scratch)
            absolute[number, e, 0] = sum_of_magnitudes(x, x, n)
            p = ints[e, steps]
            drop_random(x, n, first + start, p[0], p[1], p[2], np.float32(1.0))
            absolute[number, e, 1] = sum_of_magnitudes(x, x, n)
