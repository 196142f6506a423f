"""Finds the exact k-th largest magnitudes of a row's deltas, one sweep for all experts.

A strided sample brackets every wanted rank and names the magnitudes that many entries share. One
sweep counts what lies above each bracket, counts those shared magnitudes and collects the rest
of the bracket, which gives the threshold and the position of its last tie exactly. Counts that
contradict the sample send that rank to a histogram of the upper 16 magnitude bits, one of the
lower 15, and a search for the last tie: three sweeps, whatever the data.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.program import Program
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.order import (
    PIVOTS,
    histogram,
    magnitudes_of_tile,
    nth_equal,
    refine,
    scan_tile,
)
from mergekit_lite.ops._place import Cut
from mergekit_lite.plan.estimate import LEAST_RANK_ROOM, rank_room

SAMPLE_CHUNK = 4096
SAMPLED = 64
"""One entry of so many is sampled, until a large tensor has `MOST_CHUNKS` chunks."""
MOST_CHUNKS = 128
FINER = 4
"""A finer sample has chunks that are so many times smaller, and so many times more entries."""
LARGEST = 0x7FFFFFFF
SPREAD = 6.0
"""Half width of a bracket in standard deviations of the sampled rank."""
OFTEN = 0.02
"""A magnitude with this share of a tensor is cheaper to count than to collect."""


@dataclass
class Wanted:
    """One rank of one expert's delta, as it is before transform `position`."""

    expert: int
    position: int
    slot: int  # which of the transform's ranks
    rank: int
    low: int = 0
    high: int = LARGEST
    pivots: tuple[int, ...] = ()
    cut: Cut | None = None


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
        _bracket(row, program, open_)
    _scan(row, program, open_, stop)
    for want in open_:
        if want.cut is None:
            want.cut = _by_histogram(row, program, want, stop)


def _magnitudes(
    row: Row, program: Program, want: Wanted, first: int, count: int
) -> NDArray[np.uint32]:
    """Return the magnitude bits of one expert's delta in a tile that is loaded."""
    out = np.empty(count, np.uint32)
    magnitudes_of_tile(
        row.pool.raw, row.at, row.codes, row.is_delta, program.kinds, program.floats,
        program.ints, want.expert, want.position, first, count, program.width, row.block, out,
    )  # fmt: skip
    return out


def _room(row: Row, ranks: int) -> int:
    """Return how many entries may be collected for one rank of one expert, and a word more."""
    return rank_room(row.size, len(row.job.reads) * ranks) + 8


def _bracket(row: Row, program: Program, wanted: list[Wanted]) -> None:
    """Set `low` and `high` of each wanted rank from evenly spaced chunks of the row."""
    room = _room(row, 1 + max(want.slot for want in wanted))
    for fine in (False, True):
        rough = False
        for expert, chunks in _samples(row, program, wanted, fine=fine).items():
            sample = np.sort(chunks, axis=None)
            total = len(sample)
            for want in (w for w in wanted if w.expert == expert):
                share = want.rank / row.size
                centre = total * (1 - share)
                random = (total * share * (1 - share)) ** 0.5
                between = _between(chunks, sample[min(int(centre), total - 1)])
                spread = SPREAD * max(between, random) + 4
                below, above = int(centre - spread), int(centre + spread)
                # Beyond the ends of the sample nothing is known.
                want.low = int(sample[below]) if below >= 0 else 0
                want.high = int(sample[above]) if above < total else LARGEST
                want.pivots, left = _shared(sample, want, row.size, room)
                rough |= left * row.size > room
        if not rough:
            return


def _samples(
    row: Row, program: Program, wanted: list[Wanted], *, fine: bool
) -> dict[int, NDArray[np.uint32]]:
    """Return the magnitudes in evenly spaced chunks of the row: expert -> (chunks, entries)."""
    width = max(program.width, 1)
    entries = SAMPLE_CHUNK // FINER if fine else SAMPLE_CHUNK
    chunk = min(-(-entries // width) * width, row.tile, row.size)
    # Larger tensors need narrower brackets for what is collected to fit.
    chunks = min(max(row.size // (SAMPLE_CHUNK * SAMPLED), 16), MOST_CHUNKS)
    chunks *= FINER**2 if fine else 1
    step = max(row.size // chunks // width * width, chunk)
    samples: dict[int, list[NDArray[np.uint32]]] = {want.expert: [] for want in wanted}
    for first in range(0, row.size - chunk + 1, step)[:chunks]:
        row.load(first, chunk)
        for expert, parts in samples.items():
            want = next(w for w in wanted if w.expert == expert)
            parts.append(_magnitudes(row, program, want, first, chunk))
    return {expert: np.stack(parts) for expert, parts in samples.items()}


def _between(chunks: NDArray[np.uint32], threshold: np.uint32) -> float:
    """Return by how many entries the sampled rank of a magnitude errs, as chunks differ.

    Neighbours resemble each other (rows differ in scale, those of a low-rank delta most of all),
    so that chunks tell less than as many entries from anywhere: their spread says how much.
    """
    shares = np.count_nonzero(chunks >= threshold, axis=1)
    return float(np.std(shares, ddof=1) * len(chunks) ** 0.5) if len(chunks) > 1 else 0.0


def _shared(
    sample: NDArray[np.uint32], want: Wanted, size: int, room: int
) -> tuple[tuple[int, ...], float]:
    """Return the magnitudes of a bracket that are better counted, and what share is collected.

    Counted are those that are frequent, or too many to hold.

    `sample` is sorted.
    """
    first = np.searchsorted(sample, want.low)
    inside = sample[first : np.searchsorted(sample, want.high, side="right")]
    values, counts = np.unique(inside, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:PIVOTS]
    left = len(inside)
    pivots = []
    for i in order:
        share = counts[i] / len(sample)
        if share < OFTEN and 1.25 * left / len(sample) * size < room:
            break
        pivots.append(int(values[i]))
        left -= int(counts[i])
    return tuple(pivots), left / len(sample)


def _scan(row: Row, program: Program, wanted: list[Wanted], stop: threading.Event) -> None:
    experts = len(row.job.reads)
    ranks = 1 + max(want.slot for want in wanted)
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
    room = _room(row, ranks)
    magnitudes = np.empty((experts * ranks, room), np.uint32)
    indices = np.empty((experts * ranks, room), np.int64)
    equal = []
    bad = np.zeros_like(row.bad)
    for first, count in row.tiles(stop):
        equal.append(np.zeros((experts, ranks, PIVOTS), np.int64))
        scan_tile(
            row.pool.raw, row.at, row.codes, row.is_delta, program.kinds, program.floats,
            program.ints, depth, brackets, pivots, first, count, program.width, row.block,
            above, equal[-1], filled, magnitudes, indices, bad,
        )  # fmt: skip
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
    first = tile * row.tile
    count = min(row.tile, row.size - first)
    row.load(first, count)
    left = rank - int(up_to_tile[tile] - seen.shared[tile, tied])
    bits = _magnitudes(row, program, want, first, count)
    until = first + nth_equal(bits, count, threshold, left)[0] + 1
    return Cut(float(threshold.view(np.float32)), until)


def _by_histogram(row: Row, program: Program, want: Wanted, stop: threading.Event) -> Cut:
    """Return the cut of one rank by counting all magnitudes, bits 30..15 and then 14..0."""

    def tiles() -> Iterator[tuple[int, NDArray[np.uint32]]]:
        for first, count in row.tiles(stop):
            yield first, _magnitudes(row, program, want, first, count)

    upper = np.zeros(1 << 16, np.int64)
    for _, bits in tiles():
        histogram(bits, len(bits), upper)
    digit, rank = bin_of(upper, want.rank)
    lower = np.zeros(1 << 15, np.int64)
    for _, bits in tiles():
        refine(bits, len(bits), digit, lower)
    rest, ties = bin_of(lower, rank)
    threshold = np.uint32((digit << 15) | rest)
    for first, bits in tiles():
        position, seen = nth_equal(bits, len(bits), threshold, ties)
        if position >= 0:
            return Cut(float(threshold.view(np.float32)), first + position + 1)
        ties -= seen
    raise AssertionError("the histogram counted an entry that no tile holds")


def bin_of(bins: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Return the bin that holds the `rank`-th largest entry, and its rank within that bin."""
    from_top = np.cumsum(bins[::-1])
    place = int(np.searchsorted(from_top, rank))
    return len(bins) - 1 - place, rank - int(from_top[place - 1] if place else 0)
