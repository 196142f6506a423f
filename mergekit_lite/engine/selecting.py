"""What `sce` waits for: which entries vary most, and the experts' shares of their squares."""

from __future__ import annotations

import threading

import numpy as np

from mergekit_lite.engine.derived import derived_cuts
from mergekit_lite.engine.program import Program
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.selection import EVERYTHING
from mergekit_lite.kernels.selection_sums import selected_squares_tile, variance_tile
from mergekit_lite.kernels.sums import SUM_BLOCK
from mergekit_lite.ops._statistics import add_blocks
from mergekit_lite.ops.combine.sce import rank_of, shares_of


def find_selection(row: Row, program: Program, stop: threading.Event) -> None:
    """Enter the cut that selects entries, and the shares, which are the combine's weights."""
    threshold, until = _cut(row, float(program.params["select_topk"]), stop)
    sums = selected_squares_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, row.bad.copy(), row.work, threshold, until
    )
    parts = [np.zeros((0, len(row.job.reads)))]
    for first, count in row.tiles(stop, row.stride):
        parts.append(np.zeros((-(-count // SUM_BLOCK), len(row.job.reads))))
        sums(first, count, parts[-1])
    squares = np.concatenate(parts)
    shares = shares_of([add_blocks(squares[:, e].tolist()) for e in range(squares.shape[1])])
    program.weights = np.array(shares, np.float32)
    program.options[:2] = threshold, until


def _cut(row: Row, select_topk: float, stop: threading.Event) -> tuple[int, int]:
    if select_topk >= 1:
        return EVERYTHING
    varying = np.zeros(1, np.int64)
    given = row.pool.raw, row.at, row.codes, row.is_delta
    memory = np.empty(min(row.stride, row.size), np.float32)
    count = variance_tile.on(*given, row.bad, row.work, varying)
    for _, n in row.tiles(stop, row.stride):
        count(n, memory[:n])
    rank = rank_of(select_topk, int(varying[0]))
    if not rank:
        return EVERYTHING
    derive = variance_tile.on(*given, row.bad.copy(), row.work, varying)
    return derived_cuts(row, lambda first, n, out: derive(n, out), [rank], stop)[0]
