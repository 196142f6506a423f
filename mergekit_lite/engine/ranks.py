"""Finds the exact k-th largest magnitudes of a row's deltas, one sweep for all experts.

A strided sample brackets every wanted rank and names the magnitudes that many entries share. One
sweep counts what lies above each bracket, counts those shared magnitudes and collects the rest
of the bracket, which gives the threshold and the position of its last tie exactly. Counts that
contradict the sample send that rank to a histogram of the upper 16 magnitude bits, one of the
lower 15, and a search for the last tie: three sweeps, whatever the data.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.brackets import (
    Wanted,
    bracket,
    kind_of,
    magnitude_writer,
    ranks_of,
    room_for,
)
from mergekit_lite.engine.program import Program
from mergekit_lite.engine.ranking import bin_of
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.chain_ranks import PIECE, scan_for
from mergekit_lite.kernels.order import (
    PIVOTS,
    histogram,
    nth_equal,
    refine,
    scan_tile,
)
from mergekit_lite.ops._place import Cut
from mergekit_lite.plan.row_memory import LEAST_RANK_ROOM

_LOOKED_AT = 1 << 17
"""Entries looked at together for the last tie."""


def find_cuts(
    row: Row, program: Program, positions: Mapping[int, int], stop: threading.Event
) -> None:
    """Enter the cuts of one transform of each expert named, by its position."""
    wanted = [
        Wanted(expert, position, slot, rank)
        for expert, position in positions.items()
        for slot, rank in enumerate(program.wanted[expert, position])
    ]
    _find(row, program, wanted, stop)
    for expert, position in positions.items():
        cuts = [w.cut for w in wanted if w.expert == expert and w.cut is not None]
        program.set_cuts(expert, position, cuts)


def _find(row: Row, program: Program, wanted: list[Wanted], stop: threading.Event) -> None:
    for want in wanted:
        want.rank = min(want.rank, row.size)
        if want.rank <= 0:
            want.cut = Cut(float("inf"), 0)
    open_ = [want for want in wanted if want.cut is None]
    if not open_:
        return
    if row.size > LEAST_RANK_ROOM:
        bracket(row, program, open_)
    _scan(row, program, open_, stop)
    for want in open_:
        if want.cut is None:
            want.cut = _by_histogram(row, program, want, stop)


def _scan(row: Row, program: Program, wanted: list[Wanted], stop: threading.Event) -> None:
    experts = len(row.job.reads)
    ranks = ranks_of(program, wanted)
    brackets = np.empty((experts, ranks, 2), np.int64)
    brackets[:, :, 0], brackets[:, :, 1] = 1, 0
    depth = np.full(experts, -1, np.int64)
    for want in wanted:
        brackets[want.expert, want.slot] = want.low, want.high
        depth[want.expert] = want.position
    pivots = np.full((experts, ranks, PIVOTS), -1, np.int64)
    for want in wanted:
        pivots[want.expert, want.slot, : len(want.pivots)] = want.pivots
    above = np.zeros((experts, ranks), np.int64)
    filled = np.zeros((experts, ranks), np.int64)
    room = room_for(row, ranks)
    magnitudes = np.empty((experts * ranks, room), np.uint32)
    indices = np.empty((experts * ranks, room), np.int64)
    equal = []
    bad = np.zeros_like(row.bad)
    general = depth.copy()
    calls: dict[int, Callable[..., None]] = {}
    for expert, want in {want.expert: want for want in wanted}.items():
        kind = kind_of(row, program, want)
        if kind is None or not (loop := scan_for(kind)).is_compiled:
            continue
        own = slice(expert * ranks, expert * ranks + kind.ranks)
        general[expert] = -1
        calls[expert] = loop.on(
            row.pool.raw, row.at, 1 + expert, program.floats, program.ints,
            brackets[expert], pivots[expert], above[expert], filled[expert],
            magnitudes[own], indices[own],
            np.empty((ranks, PIECE), np.uint8), np.empty(PIECE, np.int32),
        )  # fmt: skip
    scan = None
    if (general >= 0).any():
        scan = scan_tile.on(
            row.pool.raw, row.at, row.codes, row.is_delta, program.kinds, program.floats,
            program.ints, general, brackets, pivots, program.width, row.block,
            above, filled, magnitudes, indices, bad, row.work, row.scratch,
        )  # fmt: skip
    for first, count in row.tiles(stop, row.stride):
        equal.append(np.zeros((experts, ranks, PIVOTS), np.int64))
        if scan is not None:
            scan(first, count, equal[-1])
        for expert, call in calls.items():
            call(first, count, equal[-1][expert])
    np.maximum(row.bad, bad, out=row.bad)  # a second sweep sees the same entries again
    by_tile = np.stack(equal)
    for want in wanted:
        at = want.expert, want.slot
        slot, n = want.expert * ranks + want.slot, int(filled[at])
        if n < room:
            shared = by_tile[:, want.expert, want.slot, : len(want.pivots)]
            seen = Seen(int(above[at]), magnitudes[slot, :n], indices[slot, :n], shared)
            want.cut = _cut(row, program, want, seen)


@dataclass
class Seen:
    """What a sweep has seen of one rank's bracket.

    Attributes:
        above: entries above the bracket.
        magnitudes, indices: entries inside it that are no pivots.
        shared: entries equal to each pivot, by (tile, pivot).
    """

    above: int
    magnitudes: NDArray[np.uint32]
    indices: NDArray[np.int64]
    shared: NDArray[np.int64]


def _cut(row: Row, program: Program, want: Wanted, seen: Seen) -> Cut | None:
    """Return the cut, or None when the rank lies outside the bracket."""
    counts = seen.shared.sum(0)
    rank = want.rank - seen.above
    tied = -1
    for pivot in np.argsort(want.pivots)[::-1]:
        larger = int(np.count_nonzero(seen.magnitudes > want.pivots[pivot]))
        if larger < rank <= larger + counts[pivot]:
            tied = int(pivot)
            rank -= larger
            break
        if rank > larger:
            rank -= int(counts[pivot])
    if tied < 0:
        n = len(seen.magnitudes)
        if not 0 < rank <= n:
            return None
        threshold = np.partition(seen.magnitudes, n - rank)[n - rank]
        ties = rank - int(np.count_nonzero(seen.magnitudes > threshold))
        last = np.flatnonzero(seen.magnitudes == threshold)[ties - 1]
        return Cut(float(threshold.view(np.float32)), int(seen.indices[last]) + 1)
    # Only the tile that holds the last tie is looked at again.
    threshold = np.uint32(want.pivots[tied])
    up_to_tile = np.cumsum(seen.shared[:, tied])
    tile = int(np.searchsorted(up_to_tile, rank))
    first = tile * row.stride
    count = min(row.stride, row.size - first)
    row.load(first, count)
    left = rank - int(up_to_tile[tile] - seen.shared[tile, tied])
    until = first + _nth(row, program, want, threshold, left, first, count)
    return Cut(float(threshold.view(np.float32)), until + 1)


def _nth(
    row: Row, program: Program, want: Wanted, value: np.uint32, nth: int, first: int, count: int
) -> int:
    """Return where in a loaded tile the nth magnitude equal to `value` is; it must be there."""
    write = magnitude_writer(row, program, want)
    bits = np.empty((1, row.piece(_LOOKED_AT)), np.uint32)
    found = np.zeros(2, np.int64)
    for begin in range(0, count, bits.shape[1]):
        part = bits[:, : count - begin]
        write(first, np.array([begin], np.int64), part)
        nth_equal(part[0], part.shape[1], value, nth, found)
        if found[0] >= 0:
            return begin + int(found[0])
        nth -= int(found[1])
    raise AssertionError("the sweep counted an entry that the tile does not hold")


def _by_histogram(row: Row, program: Program, want: Wanted, stop: threading.Event) -> Cut:
    """Return the cut of one rank by counting all magnitudes, bits 30..15 and then 14..0."""

    write = magnitude_writer(row, program, want)
    memory = np.empty((1, min(row.tile, row.size)), np.uint32)

    def tiles() -> Iterator[tuple[int, NDArray[np.uint32]]]:
        for first, count in row.tiles(stop):
            write(first, np.zeros(1, np.int64), memory[:, :count])
            yield first, memory[0, :count]

    upper = np.zeros(1 << 16, np.int64)
    for _, bits in tiles():
        histogram(bits, len(bits), upper)
    digit, rank = bin_of(upper, want.rank)
    lower = np.zeros(1 << 15, np.int64)
    for _, bits in tiles():
        refine(bits, len(bits), digit, lower)
    rest, ties = bin_of(lower, rank)
    threshold = np.uint32((digit << 15) | rest)
    found = np.zeros(2, np.int64)
    for first, bits in tiles():
        nth_equal(bits, len(bits), threshold, ties, found)
        if found[0] >= 0:
            return Cut(float(threshold.view(np.float32)), first + int(found[0]) + 1)
        ties -= int(found[1])
    raise AssertionError("the histogram counted an entry that no tile holds")
