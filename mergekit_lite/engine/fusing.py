"""What `arcee_fusion` waits for: how far rows diverge, and quartiles of what follows from it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.derived import derived_cuts
from mergekit_lite.engine.program import Program
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.codec import CODES
from mergekit_lite.kernels.fusion import divergence_tile, fusion_tile, importance_tile
from mergekit_lite.kernels.lanes import LANES
from mergekit_lite.ops.combine.arcee_fusion import limit_of, quartile_ranks


def find_importance(row: Row, program: Program, stop: threading.Event) -> None:
    """Enter the divergence of every row, and the importance from which on an entry is taken."""
    width = program.width
    divergences = np.empty(row.size // width, np.float64)
    wide = np.empty((2, -(-width // LANES) * LANES), np.float64)
    given = row.pool.raw, row.at, row.codes, row.is_delta
    measure = divergence_tile.on(*given, row.bad, row.work, wide, width)
    for first, count in row.tiles(stop):
        measure(count, divergences[first // width : (first + count) // width])
    derive = importance_tile.on(*given, row.bad.copy(), row.work, width, divergences)
    cuts = derived_cuts(row, derive, quartile_ranks(row.size), stop)
    thresholds = np.array([bits for bits, _ in cuts], np.uint32).view(np.float32).tolist()
    program.divergences, program.limit = divergences, limit_of(*thresholds)


def fusion(row: Row, program: Program, out: NDArray[np.uint8]) -> Callable[..., None]:
    """Return what writes a tile of the result into `out`."""
    return fusion_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, row.bad, row.work, max(program.width, 1),
        program.divergences, program.limit, out, CODES[row.job.dtype],
    )  # fmt: skip
