"""What `arcee_fusion` waits for: how far rows diverge, and quartiles of what follows from it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.program import Program
from mergekit_lite.engine.ranking import bin_of
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.codec import CODES
from mergekit_lite.kernels.fusion import divergence_tile, fusion_tile, importance_tile
from mergekit_lite.kernels.lanes import LANES
from mergekit_lite.kernels.order import histogram, refine
from mergekit_lite.kernels.steps import MAGNITUDE
from mergekit_lite.ops.combine.arcee_fusion import limit_of, quartile_ranks


def find_importance(row: Row, program: Program, stop: threading.Event) -> None:
    """Enter the divergence of every row, and the importance from which on an entry is taken."""
    width = program.width
    divergences = np.empty(row.size // width, np.float64)
    wide = np.empty((2, -(-width // LANES) * LANES), np.float64)
    values = np.empty(min(row.tile, row.size), np.float32)
    given = row.pool.raw, row.at, row.codes, row.is_delta
    measure = divergence_tile.on(*given, row.bad, row.work, wide, width)
    derive = importance_tile.on(*given, row.bad.copy(), row.work, width, divergences)

    def bits_of(first: int, count: int) -> NDArray[np.uint32]:
        derive(first, count, values[:count])
        bits = values[:count].view(np.uint32)
        # A NaN that is allowed may have a sign, for which there is no bin.
        np.bitwise_and(bits, MAGNITUDE, out=bits)
        return bits

    # By two counts of their bits: importances differ in scale by row, so that a sample tells
    # little of where their ranks lie.
    upper = np.zeros(1 << 16, np.int64)
    for first, count in row.tiles(stop):
        measure(count, divergences[first // width : (first + count) // width])
        histogram(bits_of(first, count), count, upper)
    found = [bin_of(upper, rank) for rank in quartile_ranks(row.size)]
    lower = {digit: np.zeros(1 << 15, np.int64) for digit, _ in found}
    for first, count in row.tiles(stop):
        bits = bits_of(first, count)
        for digit, counts in lower.items():
            refine(bits, count, digit, counts)
    each = [(digit << 15) | bin_of(lower[digit], left)[0] for digit, left in found]
    quartiles = np.array(each, np.uint32).view(np.float32).tolist()
    program.divergences, program.limit = divergences, limit_of(*quartiles)


def fusion(row: Row, program: Program, out: NDArray[np.uint8]) -> Callable[..., None]:
    """Return what writes a tile of the result into `out`."""
    return fusion_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, row.bad, row.work, max(program.width, 1),
        program.divergences, program.limit, out, CODES[row.job.dtype],
    )  # fmt: skip
