"""Finds the fewest entries that have a share of a row's sum of squares, by two counts of bits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.brackets import Wanted, magnitude_writer
from mergekit_lite.engine.program import Program
from mergekit_lite.engine.ranking import HIGH, LOW, UPPER, Ranking
from mergekit_lite.engine.row import Row
from mergekit_lite.kernels.order import histogram, nth_equal, refine, squares
from mergekit_lite.ops._place import Cut

_LOOKED_AT = 1 << 17
"""Magnitudes that are looked at together, while they are in the cache."""
MOST_HELD = 1 << 24
"""Entries that a pair of `squares` has room for."""
_FEW = 64
"""Magnitudes whose counts up to the end of each tile are kept; models in 16 bits have no more."""


def find_shares(
    row: Row, program: Program, positions: Mapping[int, int], stop: threading.Event
) -> None:
    """Enter the cut of one transform of each expert named, by its position."""
    write = {
        expert: magnitude_writer(row, program, Wanted(expert, position, 0, 0))
        for expert, position in positions.items()
    }
    rankings = {
        expert: Ranking([row.size], row.size, share=program.shares[expert, position])
        for expert, position in positions.items()
    }
    seen: dict[int, Counts] = {}
    open_ = dict(rankings)
    memory = np.empty((1, min(row.piece(_LOOKED_AT), row.size)), np.uint32)
    while open_:
        seen |= (counts := {expert: Counts(ranking) for expert, ranking in open_.items()})
        for first, count in row.tiles(stop):
            for expert, one in counts.items():
                for begin, part in _pieces(memory, count):
                    write[expert](first, begin, part)
                    one.add(part[0])
                one.end_tile()
        for one in counts.values():
            one.end()
        open_ = {expert: ranking for expert, ranking in open_.items() if ranking.next()}
    until = _last_ties(row, write, seen, memory)
    for expert, position in positions.items():
        cut = Cut(rankings[expert].threshold(0), until.get(expert, 0))
        program.set_cuts(expert, position, [cut])


def _last_ties(
    row: Row,
    write: Mapping[int, Callable[..., None]],
    seen: Mapping[int, Counts],
    memory: NDArray[np.uint32],
) -> dict[int, int]:
    """Return behind which entry the last one lies that is kept of those that tie, by expert."""
    begun = {expert: one.last_tie() for expert, one in seen.items() if one.ranking.ranks[0]}
    left = {expert: nth for expert, (_, nth) in begun.items()}
    until, found = {}, np.zeros(2, np.int64)
    for tile in range(-(-row.size // row.tile)):
        wanted = [expert for expert in left if tile >= begun[expert][0]]
        if not wanted:
            continue
        first, count = tile * row.tile, min(row.tile, row.size - tile * row.tile)
        row.load(first, count)
        for expert in wanted:
            threshold = np.uint32(seen[expert].ranking.found[0])
            for begin, part in _pieces(memory, count):
                write[expert](first, begin, part)
                nth_equal(part[0], part.shape[1], threshold, left[expert], found)
                left[expert] -= int(found[1])
                if found[0] >= 0:
                    until[expert] = first + int(begin[0] + found[0]) + 1
                    del left[expert]
                    break
    return until


def _pieces(
    memory: NDArray[np.uint32], count: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32]]]:
    """Yield where each piece of a tile begins, and memory for it."""
    size = memory.shape[1]
    for begin in range(0, count, size):
        yield np.array([begin], np.int64), memory[:, : min(size, count - begin)]


class Counts:
    """Counts of magnitude bits, as a ranking wants them next.

    Args:
        ranking: says which; it takes them in by its own `add`.
    """

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self.bins = ranking.empty()
        self._pairs = np.zeros(2 * UPPER if HIGH in self.bins else 0, np.int64)
        self._sums = np.zeros((2, UPPER if HIGH in self.bins else 0), np.int64)
        self._held = 0
        self._tiles: list[dict[int, int]] = []
        self._told = ranking.stage > 0

    def add(self, bits: NDArray[np.uint32]) -> None:
        """Count the magnitudes of a tile, or of a part of it."""
        if self.ranking.stage > 0:
            for digit, counts in self.bins.items():
                refine(bits, len(bits), digit, counts)
        elif not len(self._pairs):
            histogram(bits, len(bits), self.bins[0])
        else:
            for begin in range(0, len(bits), MOST_HELD):
                part = bits[begin : begin + MOST_HELD]
                if self._held + len(part) > MOST_HELD:
                    self._unpack()
                squares(part, len(part), self._pairs)
                self._held += len(part)

    def end_tile(self) -> None:
        """Take down how many there are up to here, of a second count for one rank."""
        if not self._told:
            return
        (counts,) = self.bins.values()
        there = np.flatnonzero(counts)
        self._tiles.append(dict(zip(there.tolist(), counts[there].tolist(), strict=True)))
        if len(there) > _FEW:
            self._told, self._tiles = False, []

    def last_tie(self) -> tuple[int, int]:
        """Return from which tile on the last tie is to be sought, and how many there are to it."""
        lower, nth, before = self.ranking.found[0] & 0x7FFF, self.ranking.left[0], 0
        for number, counts in enumerate(self._tiles):
            if counts.get(lower, 0) >= nth:
                return number, nth - before
            before = counts.get(lower, 0)
        return 0, nth

    def _unpack(self) -> None:
        pairs = self._pairs.reshape(UPPER, 2)
        self.bins[0] += pairs[:, 0] >> 40
        self._sums += np.stack([pairs[:, 0] & ((1 << 40) - 1), pairs[:, 1]])
        pairs[:] = 0
        self._held = 0

    def end(self) -> None:
        """Hand over what has been counted."""
        if len(self._pairs):
            self._unpack()
            for digit in np.flatnonzero(self.bins[0]).tolist():
                first = (digit & 0xFF) << 15 | (digit > 0xFF) << 23
                count, (once, twice) = int(self.bins[0][digit]), self._sums[:, digit].tolist()
                # Entries are `first + d`, of which d and d^2 have been added up.
                total = count * first**2 + 2 * first * once + twice
                self.bins[HIGH][digit], self.bins[LOW][digit] = divmod(total, 1 << 24)
        self.ranking.add(self.bins)
