"""Sums over whole tensors in fp64, in an order that does not depend on tiles or threads.

Blocks of 4096 entries by flat index; in a block, entry j goes to lane j % 16, lanes are added in
order; the caller adds the blocks with `math.fsum`, which rounds once whatever their order.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel
from mergekit_lite.kernels.codec import decode
from mergekit_lite.kernels.lanes import sum_of_entries, sum_of_magnitudes, sum_of_products
from mergekit_lite.kernels.row_marks import mark_rows
from mergekit_lite.kernels.steps import FAR
from mergekit_lite.kernels.tile import load_input, load_inputs, transform_input

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
    x = work[4:]
    for number in range((count + SUM_BLOCK - 1) // SUM_BLOCK):
        start = number * SUM_BLOCK
        n = min(SUM_BLOCK, count - start)
        load_inputs(raw, at, code, is_delta, weight_space, bad, start, n, work)
        for e in range(experts):
            for other in range(e, experts):
                gram[number, e, other] = sum_of_products(x[e], x[other], n)


@inlined
def add_to_blocks(
    x: NDArray[np.float32],
    n: int,
    flat: int,
    size: int,
    begun: NDArray[np.float32],
    number: int,
    moments: bool,
    sums: NDArray[np.float64],
) -> None:
    """Write the sums of every block that ends among the entries `flat` to `flat + n`.

    That of magnitudes, or for `moments` those of entries and of squares. `begun` holds a block's
    entries until its last one comes, or the tensor's, which has `size`; block `number` goes to
    `sums[0]`.
    """
    done = 0
    while done < n:
        at = (flat + done) % SUM_BLOCK
        part = min(n - done, SUM_BLOCK - at)
        more, room = x[done : done + part], begun[at : at + part]
        for j in range(part):
            room[j] = more[j]
        done += part
        if at + part == SUM_BLOCK or flat + done == size:
            block = (flat + done - 1) // SUM_BLOCK
            if moments:
                sums[block - number, 0] = sum_of_entries(begun, begun, at + part)
                sums[block - number, 1] = sum_of_products(begun, begun, at + part)
            else:
                sums[block - number, 0] = sum_of_magnitudes(begun, begun, at + part)


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
    "i8",
    "i8",
    "i8",
    "i8[::1]",
    "f4[:,::1]",
    "i8[::1]",
    "f4[:,:,::1]",
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
    marks: NDArray[np.int64],
    width: int,
    block: int,
    size: int,
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    scratch: NDArray[np.int64],
    begun: NDArray[np.float32],
    first: int,
    count: int,
    sums: NDArray[np.float64],
) -> None:
    """Write sums of the magnitudes that random drops see and of those that they keep.

    Of what a cut by deviation sees, write the sums of entries and of their squares. `depth[e]` is
    how many transforms of expert e precede it, -1 where none is asked about; `marks[e]` at which
    byte of `scratch` what a drop by rows keeps is marked, -1: nowhere. `sums` has the shape
    (blocks, experts, 2), for the blocks that the tile has entries of. A
    block that begins in one tile and ends in another is told with the latter: tiles hold whole
    rows where a step works on rows. `begun` (experts x 2 x 4096) carries it over.
    """
    experts = at.shape[0] - 1
    base, x = work[0], work[1]
    number = first // SUM_BLOCK
    for j in range(block):
        base[j] = np.float32(0.0)
    for start in range(0, count, block):
        n, flat = min(block, count - start), first + start
        if code[0] >= 0:
            bad[0] += decode(raw, at[0] + start * _WIDTHS[code[0]], code[0], base, n)
        for e in range(experts):
            t = depth[e]
            if t < 0:
                continue
            bad[e + 1] += load_input(e + 1, raw, at, code, is_delta, False, base, start, n, x)
            transform_input(kinds[e], floats[e], ints[e], t, x, n, flat, width, scratch)
            if kinds[e, t] == FAR:
                add_to_blocks(x, n, flat, size, begun[e, 0], number, True, sums[:, e])
                continue
            add_to_blocks(x, n, flat, size, begun[e, 0], number, False, sums[:, e, :1])
            # Its factor is 1 as long as the one that these sums are for is not known.
            transform_input(kinds[e, t:], floats[e, t:], ints[e, t:], 1, x, n, flat, width, scratch)
            if marks[e] >= 0:
                mark_rows(x, n, flat, width, scratch.view(np.uint8)[marks[e] :])
            add_to_blocks(x, n, flat, size, begun[e, 1], number, False, sums[:, e, 1:])
