"""Runs one row on the CPU through the fused kernels: read a tile, merge it, write it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.changing import find_changes
from mergekit_lite.engine.fusing import find_importance, fusion
from mergekit_lite.engine.kinds import merge_loop
from mergekit_lite.engine.program import Program, set_gram
from mergekit_lite.engine.ranks import find_cuts
from mergekit_lite.engine.row import Row, Write
from mergekit_lite.engine.selecting import find_selection
from mergekit_lite.engine.sharing import find_shares
from mergekit_lite.engine.totals import find_sums, gram_of
from mergekit_lite.engine.vectors import by_row, find_columns
from mergekit_lite.kernels.codec import CODES
from mergekit_lite.kernels.combine import BY_ROW, FUSION
from mergekit_lite.kernels.tile import BLOCK, merge_tile

Finder = Callable[[Row, Program, threading.Event], None]
FINDERS: Mapping[str, Finder] = {
    "sce": find_selection,
    "nuslerp": find_columns,
    "arcee_fusion": find_importance,
    "ramplus": find_changes,
}
"""What finds the statistics of combines that have a kind of their own."""


def merge_row(
    row: Row, program: Program, write: Write, stop: threading.Event, *, allow_nonfinite: bool
) -> None:
    """Find the statistics that the program waits for, then compute and write every tile."""
    prepare(row, program, stop, allow_nonfinite=allow_nonfinite)
    merge_tiles(row, program, write, stop)
    row.check_finite(allow_nonfinite)


def prepare(row: Row, program: Program, stop: threading.Event, *, allow_nonfinite: bool) -> None:
    """Find all that the program waits for, so that any tile of the row can be computed."""
    find_statistics(row, program, stop)
    if program.gram is not None:
        set_gram(program, gram_of(row, stop))
    if program.finder and row.size:
        FINDERS[program.finder](row, program, stop)
    row.check_finite(allow_nonfinite)


def find_statistics(row: Row, program: Program, stop: threading.Event) -> None:
    """Find all cuts and factors that the program still wants, transform after transform."""
    while positions := program.waiting():
        cuts = {e: at for e, at in positions.items() if (e, at) in program.wanted}
        shares = {e: cuts.pop(e) for e, at in positions.items() if (e, at) in program.shares}
        sums = {e: at for e, at in positions.items() if (e, at) not in program.wanted}
        if cuts:
            find_cuts(row, program, cuts, stop)
        if shares:
            find_shares(row, program, shares, stop)
        if sums:
            find_sums(row, program, sums, stop)


def merge_tiles(row: Row, program: Program, write: Write, stop: threading.Event) -> None:
    """Compute the row's tiles with all statistics resolved, handing each to `write`."""
    width = DTYPE_BYTES[row.job.dtype]
    out = np.empty(min(row.tile, row.size) * width, np.uint8)
    merge = tile_maker(row, program, out)
    for first, count in row.tiles(stop):
        merge(first, count)
        write(out[: count * width], first * width)


def tile_maker(row: Row, program: Program, out: NDArray[np.uint8]) -> Callable[..., None]:
    """Return what computes a tile into `out`: a loop for this kind of row where there is one."""
    if program.combine == BY_ROW:
        return by_row(row, program, partial(_general, row, program, out))
    if program.combine == FUSION:
        return fusion(row, program, out)
    loop = merge_loop(row.job, program, row.codes.tolist(), row.is_delta.tolist())
    if loop is not None and loop.is_compiled:
        return loop.on(
            row.pool.raw, row.at, program.floats, program.ints, program.weights,
            program.divisor, program.posts, program.limits, out, row.bad, row.norms,
        )  # fmt: skip
    return _general(row, program, out, program.weights)


def _general(
    row: Row, program: Program, out: NDArray[np.uint8], weights: NDArray[np.float32]
) -> Callable[..., None]:
    """Return the kernel that computes any tile of a row into `out`."""
    # Blocks hold whole rows where a transform works on them; a combine finds its row itself.
    block = row.block if program.kinds.shape[1] else BLOCK
    return merge_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, program.weight_space,
        program.kinds, program.floats, program.ints,
        program.combine, weights, program.divisor, program.options, program.posts, program.limits,
        program.columns or program.width, block, out, CODES[row.job.dtype], row.bad, row.norms,
        row.work, row.scratch,
    )  # fmt: skip
