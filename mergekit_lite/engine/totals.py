"""Inner products of a row's inputs in fp64, in the order that `ops._statistics` fixes."""

from __future__ import annotations

import threading

import numpy as np

from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.sums import SUM_BLOCK, sums_tile
from mergekit_lite.ops._place import Sums
from mergekit_lite.ops._statistics import add_blocks


def gram_of(row: Row, stop: threading.Event) -> Sums:
    """Return the inner products of all inputs of a row, in one sweep."""
    experts = len(row.job.reads)
    parts = []
    no_magnitudes = np.empty((0, experts), np.float64)
    for _, count in row.tiles(stop):
        gram = np.zeros((-(-count // SUM_BLOCK), experts, experts), np.float64)
        sums_tile(
            row.pool.raw, row.at, row.codes, row.is_delta, row.weight_space, count,
            no_magnitudes, gram, row.bad,
        )  # fmt: skip
        parts.append(gram)
    blocks = np.concatenate(parts) if parts else np.zeros((0, experts, experts))
    full = [
        [add_blocks(blocks[:, min(i, j), max(i, j)].tolist()) for j in range(experts)]
        for i in range(experts)
    ]
    return Sums(gram=tuple(map(tuple, full)))
