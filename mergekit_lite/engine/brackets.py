"""Brackets the ranks that a row's deltas are asked for, from a sample of their magnitudes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.kinds import ranked
from mergekit_lite.engine.program import Program
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.chain_ranks import Ranked, sample_for
from mergekit_lite.kernels.order import PIVOTS, magnitudes_of_tile
from mergekit_lite.ops._place import Cut
from mergekit_lite.plan.row_memory import rank_room

SAMPLE_CHUNK = 4096
SAMPLED = 64
"""One entry of so many is sampled, until a large tensor has `MOST_CHUNKS` chunks."""
MOST_CHUNKS = 128
FINER = 4
"""A finer sample has chunks that are so many times smaller, and so many times more entries."""
LARGEST = 0x7FFFFFFF
SPREAD = 4.0
"""Half width of a bracket in standard deviations of the sampled rank."""
OFTEN = 0.003
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


def magnitude_writer(row: Row, program: Program, want: Wanted) -> Callable[..., None]:
    """Return what writes magnitude bits of one expert's delta in a tile that is loaded.

    It is called with the tile's first flat index, where in it chunks begin, and where to write
    (chunks x entries).
    """
    kind = kind_of(row, program, want)
    if kind is not None and (loop := sample_for(kind)).is_compiled:
        return loop.on(row.pool.raw, row.at, 1 + want.expert, program.floats, program.ints)
    return magnitudes_of_tile.on(
        row.pool.raw, row.at, row.codes, row.is_delta, program.kinds, program.floats,
        program.ints, want.expert, want.position, program.width, row.block, row.work, row.scratch,
    )  # fmt: skip


def kind_of(row: Row, program: Program, want: Wanted) -> Ranked | None:
    """Return the kind of input a rank is asked of, None where only general kernels know it."""
    codes, deltas = row.codes.tolist(), row.is_delta.tolist()
    return ranked(program, want.expert, want.position, codes, deltas)


def ranks_of(program: Program, wanted: list[Wanted]) -> int:
    """Return the most ranks that a transform asks for, those among them that need no sweep too."""
    return max(len(program.wanted[want.expert, want.position]) for want in wanted)


def room_for(row: Row, ranks: int) -> int:
    """Return how many entries may be collected for one rank of one expert, and a word more."""
    return rank_room(row.size, len(row.job.reads) * ranks) + 8


def bracket(row: Row, program: Program, wanted: list[Wanted]) -> None:
    """Set `low` and `high` of each wanted rank from evenly spaced chunks of the row."""
    room = room_for(row, ranks_of(program, wanted))
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
    begins = np.arange(0, row.size - chunk + 1, step, dtype=np.int64)[:chunks]
    write = {want.expert: magnitude_writer(row, program, want) for want in wanted}
    samples = {expert: np.empty((len(begins), chunk), np.uint32) for expert in write}
    if row.kept:
        row.load(0, row.size)
        for expert, sample in samples.items():
            write[expert](0, begins, sample)
        return samples
    at_once = np.zeros(1, np.int64)
    for number, first in enumerate(begins.tolist()):
        row.load(first, chunk)
        for expert, sample in samples.items():
            write[expert](first, at_once, sample[number : number + 1])
    return samples


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
