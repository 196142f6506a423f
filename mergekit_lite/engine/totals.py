"""Sums over a whole row in fp64, in the order that `ops._statistics` fixes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.kinds import kept_loop
from mergekit_lite.engine.program import Program
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.steps import ROW_DROP
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


def find_sums(
    row: Row, program: Program, positions: Mapping[int, int], stop: threading.Event
) -> None:
    """Enter what follows from sums for one transform of each expert named, from one sweep.

    These are factors of random drops, and bounds of cuts by deviation.
    """
    experts = len(row.job.reads)
    depth = np.full(experts, -1, np.int64)
    marks = _marks(row, program, positions)
    calls: dict[int, Callable[..., None]] = {}
    for expert, position in positions.items():
        loop = kept_loop(program, expert, position, row.codes.tolist(), row.is_delta.tolist())
        if loop is not None and loop.is_compiled:
            calls[expert] = loop.on(
                row.pool.raw, row.at, 1 + expert, program.floats, program.ints, row.work
            )
        else:
            depth[expert] = position
    bad = np.zeros_like(row.bad)
    parts = [np.zeros((0, experts, 2))]
    sums = None
    if (depth >= 0).any():
        sums = kept_tile.on(
            row.pool.raw, row.at, row.codes, row.is_delta, program.kinds, program.floats,
            program.ints, depth, marks, program.width, row.block, row.size, bad, row.work,
            row.scratch, np.empty((experts, 2, SUM_BLOCK), np.float32),
        )  # fmt: skip
    for first, count in row.tiles(stop):
        blocks = -(-(first + count) // SUM_BLOCK) - first // SUM_BLOCK
        parts.append(np.zeros((blocks, experts, 2)))
        if sums is not None:
            sums(first, count, parts[-1])
        for expert, call in calls.items():
            absolute = np.zeros((len(parts[-1]), 2))
            call(first, count, absolute)
            parts[-1][:, expert] = absolute
    np.maximum(row.bad, bad, out=row.bad)
    every = np.concatenate(parts)
    for expert, position in positions.items():
        one, other = (add_blocks(every[:, expert, i].tolist()) for i in (0, 1))
        if (expert, position) in program.by_l1:
            program.set_factor(expert, position, one, other, int(marks[expert]))
        else:
            seen = Sums(plain=(one, float(row.size)), gram=((other,),))
            program.set_bounds(expert, position, seen)


def _marks(row: Row, program: Program, positions: Mapping[int, int]) -> NDArray[np.int64]:
    """Make room for marks of what drops by rows keep; return at which byte those of each begin.

    That is -1 where there is nothing to mark, or no room for it.
    """
    marks = np.full(len(row.job.reads), -1, np.int64)
    for expert, position in positions.items():
        if program.kinds[expert, position] == ROW_DROP:
            marks[expert] = row.room_for_marks()
    return marks
