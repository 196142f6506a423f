"""Sums over a whole row in fp64, in the order that `ops._statistics` fixes."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from mergekit_lite.engine.program import Program
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.sums import SUM_BLOCK, gram_tile, kept_tile
from mergekit_lite.ops._place import Sums
from mergekit_lite.ops._statistics import add_blocks


def gram_of(row: Row, stop: threading.Event) -> Sums:
    """Return the inner products of all inputs of a row, in one sweep."""
    experts = len(row.job.reads)
    parts = []
    sums = gram_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, row.weight_space, row.bad,
        row.work,
    )  # fmt: skip
    for _, count in row.tiles(stop):
        gram = np.zeros((-(-count // SUM_BLOCK), experts, experts), np.float64)
        sums(count, gram)
        parts.append(gram)
    blocks = np.concatenate(parts) if parts else np.zeros((0, experts, experts))
    full = [
        [add_blocks(blocks[:, min(i, j), max(i, j)].tolist()) for j in range(experts)]
        for i in range(experts)
    ]
    return Sums(gram=tuple(map(tuple, full)))


def find_factors(
    row: Row, program: Program, positions: Mapping[int, int], stop: threading.Event
) -> None:
    """Enter the factors of one random drop of each expert named, from one sweep for them all."""
    experts = len(row.job.reads)
    depth = np.full(experts, -1, np.int64)
    for expert, position in positions.items():
        depth[expert] = position
    bad = np.zeros_like(row.bad)
    parts = [np.zeros((0, experts, 2))]
    sums = kept_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, program.kinds, program.floats,
        program.ints, depth, bad, row.work, row.bins,
    )  # fmt: skip
    for first, count in row.tiles(stop):
        parts.append(np.zeros((-(-count // SUM_BLOCK), experts, 2)))
        sums(first, count, parts[-1])
    np.maximum(row.bad, bad, out=row.bad)
    blocks = np.concatenate(parts)
    for expert, position in positions.items():
        before, after = (add_blocks(blocks[:, expert, i].tolist()) for i in (0, 1))
        program.set_factor(expert, position, before, after)
