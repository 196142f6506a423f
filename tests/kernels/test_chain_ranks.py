"""Sweeps written out for a kind of input against the sweep for any row, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from mergekit_lite.kernels import warm
from mergekit_lite.kernels.chain_ranks import PIECE, Ranked, sample_for, scan_for
from mergekit_lite.kernels.codec import BF16, F16, F32, F64
from mergekit_lite.kernels.order import PIVOTS, magnitudes_of_tile, scan_tile
from mergekit_lite.kernels.steps import BAND, CUT, DARE, IDENTITY, ROW_BAND
from mergekit_lite.kernels.tile import BLOCK
from tests.kernels.arrays import Floats
from tests.kernels.blocks import memory
from tests.kernels.rows import DATA, Inputs, inputs, numbers

NO = -1
LARGEST = 0x7FFFFFFF
NOTHING = (1, 0)
"""A bracket where no rank is wanted."""

KINDS = {
    "bf16": Ranked(BF16, BF16, False, (), 1),
    "two ranks": Ranked(F32, F16, False, (IDENTITY,), 2),
    "a delta after a drop": Ranked(BF16, F32, True, (DARE,), 1),
    "no base": Ranked(NO, F64, True, (CUT, BAND), 2),
    "an absent input": Ranked(F32, NO, True, (), 1),
    "three transforms": Ranked(F16, F16, False, (BAND, DARE, CUT), 2),
}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    kernels = [make(kind) for kind in KINDS.values() for make in (scan_for, sample_for)]
    warm.compile_kernels(kernels)


@dataclass
class Seen:
    """What a sweep has counted and collected, by rank."""

    above: NDArray[np.int64]
    equal: NDArray[np.int64]
    filled: NDArray[np.int64]
    magnitudes: NDArray[np.uint32]
    indices: NDArray[np.int64]

    @classmethod
    def empty(cls, ranks: int, room: int) -> Seen:
        # One row more, which nothing may be written to.
        return cls(
            np.full(ranks, 5, np.int64),
            np.full((ranks, PIVOTS), 7, np.int64),
            np.zeros(ranks, np.int64),
            np.full((ranks + 1, room), 0xDEAD, np.uint32),
            np.full((ranks + 1, room), -7, np.int64),
        )

    @property
    def intact(self) -> bool:
        return bool((self.magnitudes[-1] == 0xDEAD).all() and (self.indices[-1] == -7).all())

    def pairs(self, rank: int) -> list[tuple[int, int]]:
        n = int(self.filled[rank])
        return [
            *zip(self.magnitudes[rank, :n].tolist(), self.indices[rank, :n].tolist(), strict=True)
        ]


@dataclass
class Case:
    """A tile whose second expert is asked about, and what is asked."""

    kind: Ranked
    tile: Inputs
    floats: Floats
    ints: NDArray[np.int64]
    brackets: NDArray[np.int64]
    pivots: NDArray[np.int64]

    def transforms(self) -> NDArray[np.int64]:
        kinds = np.zeros(self.floats.shape, np.int64)
        kinds[1, : len(self.kind.kinds)] = self.kind.kinds
        return kinds

    def chunks(self, begins: NDArray[np.int64], n: int) -> NDArray[np.uint32]:
        """Return the bits of magnitudes that the ranks are of, in chunks of the tile."""
        tile, out = self.tile, np.full((len(begins), n), 0xDEAD, np.uint32)
        magnitudes_of_tile(
            tile.raw, tile.at, tile.codes, tile.is_delta, self.transforms(), self.floats,
            self.ints, 1, len(self.kind.kinds), 0, BLOCK, *memory(2), tile.first, begins, out,
        )  # fmt: skip
        return out

    def magnitudes(self) -> NDArray[np.uint32]:
        """Return the bits of all magnitudes of the tile."""
        return self.chunks(np.zeros(1, np.int64), self.tile.count).reshape(-1)

    def by_general_kernel(self, room: int) -> Seen:
        tile, ranks = self.tile, self.kind.ranks
        seen = Seen.empty(ranks, room)
        brackets = np.full((2, ranks, 2), NOTHING, np.int64)
        pivots = np.full((2, ranks, PIVOTS), -1, np.int64)
        brackets[1], pivots[1] = self.brackets, self.pivots
        above, filled = np.zeros((2, ranks), np.int64), np.zeros((2, ranks), np.int64)
        equal = np.zeros((2, ranks, PIVOTS), np.int64)
        above[1], filled[1], equal[1] = seen.above, seen.filled, seen.equal
        magnitudes = np.concatenate([seen.magnitudes[:ranks], seen.magnitudes])
        indices = np.concatenate([seen.indices[:ranks], seen.indices])
        scan_tile(
            tile.raw, tile.at, tile.codes, tile.is_delta, self.transforms(), self.floats,
            self.ints, np.array([-1, len(self.kind.kinds)]), brackets, pivots, 0, BLOCK,
            above, filled, magnitudes, indices, np.zeros(4, np.int64), *memory(2),
            tile.first, tile.count, equal,
        )  # fmt: skip
        return Seen(above[1], equal[1], filled[1], magnitudes[ranks:], indices[ranks:])

    def by_loop(self, room: int, tile: int = 1 << 30) -> Seen:
        """Return what the sweep sees, tile after tile."""
        ranks = self.kind.ranks
        seen = Seen.empty(ranks, room)
        for done in range(0, self.tile.count, tile):
            scan = scan_for(self.kind).on(
                self.tile.raw, self.tile.later(done), 2, self.floats, self.ints, self.brackets,
                self.pivots, seen.above, seen.filled, seen.magnitudes[:ranks],
                seen.indices[:ranks], np.full((ranks, PIECE), 9, np.uint8),
                np.full(PIECE, -9, np.int32),
            )  # fmt: skip
            scan(self.tile.first + done, min(tile, self.tile.count - done), seen.equal)
        return seen


def case(kind: Ranked, data: str, generator: np.random.Generator) -> Case:
    """Return a tile with brackets and pivots among the magnitudes that are there."""
    codes = (kind.base, BF16, kind.code)
    tile = inputs(generator, data, codes, (False, kind.is_delta))
    floats, ints = numbers(generator, ((IDENTITY,) * len(kind.kinds), kind.kinds), tile)
    brackets = np.zeros((kind.ranks, 2), np.int64)
    pivots = np.full((kind.ranks, PIVOTS), -1, np.int64)
    made = Case(kind, tile, floats, ints, brackets, pivots)
    there = made.magnitudes()
    for r in range(kind.ranks):
        low, high = sorted(map(int, generator.choice(there, 2)))
        named = int(generator.integers(0, PIVOTS + 1))
        match generator.integers(0, 6):
            case 0:
                low, high = 0, LARGEST
            case 1:
                low, named = high, 1  # a bracket of one shared magnitude
            case 2:
                low = high
        brackets[r] = low, high
        inside = np.unique(there[(there >= low) & (there <= high)])
        some = generator.permutation(np.append(inside[:100], min(low + 1, high)))
        some = np.unique(some[:named])
        pivots[r, : len(some)] = generator.permutation(some)
    return made


def compared(made: Case, room: int, tile: int = 1 << 30) -> int:
    """Compare both sweeps; return how many ranks did not fit."""
    wanted, got = made.by_general_kernel(room), made.by_loop(room, tile)
    assert got.intact
    assert wanted.intact
    assert got.above.tolist() == wanted.above.tolist()
    assert got.equal.tolist() == wanted.equal.tolist()
    magnitudes = made.magnitudes()
    over = 0
    for r, (low, high) in enumerate(made.brackets.tolist()):
        inside = (magnitudes >= low) & (magnitudes <= high) & ~np.isin(magnitudes, made.pivots[r])
        total = int(inside.sum())
        if total + 8 <= room:
            at = np.flatnonzero(inside)
            all_ = zip(magnitudes[at].tolist(), (at + made.tile.first).tolist(), strict=True)
            assert got.pairs(r) == wanted.pairs(r) == [*all_]
        else:
            # Eight at a time: with less room than that it may be told early.
            assert int(got.filled[r]) in ({total, room + 1} if total <= room else {room + 1})
            over += 1
    return over


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", KINDS)
def test_a_sweep_sees_what_the_general_one_does(name: str, data: str) -> None:
    for seed in range(24):
        made = case(KINDS[name], data, np.random.default_rng(seed))
        assert compared(made, made.tile.count + 8) == 0


def test_a_sweep_sees_ties_of_every_transform_where_they_are() -> None:
    """Drops that keep the sizes of entries, so that cuts after them tie too."""
    for seed in range(100):
        made = case(KINDS["three transforms"], "calm", np.random.default_rng(seed))
        made.floats[:] = 1
        made.ints[1, 0, 0] = 0x7F000000  # the band drops nothing from above
        made.ints[1, 1, 2] = 0xC0000000  # three of four entries stay
        made.brackets[0] = 1, LARGEST
        made.pivots[0] = -1
        compared(made, made.tile.count + 8)


@pytest.mark.parametrize("room", [8, 9, 50, 1000])
@pytest.mark.parametrize("name", ["bf16", "two ranks", "three transforms"])
def test_what_does_not_fit_is_told_and_nothing_written_past_the_end(name: str, room: int) -> None:
    over = 0
    for seed in range(24):
        over += compared(case(KINDS[name], "calm", np.random.default_rng(seed)), room)
    assert 0 < over < 24 * KINDS[name].ranks


@pytest.mark.parametrize("tile", [64, 999, PIECE, PIECE + 8])
@pytest.mark.parametrize("name", ["bf16", "three transforms"])
def test_tiles_of_any_size_add_up(name: str, tile: int) -> None:
    for seed in range(6):
        made = case(KINDS[name], "rarely_broken", np.random.default_rng(seed))
        assert compared(made, made.tile.count + 8, tile) == 0


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", KINDS)
def test_samples_are_those_of_the_general_kernel(name: str, data: str) -> None:
    """Chunks anywhere in a tile, in any order, longer than a piece and shorter."""
    for seed in range(16):
        generator = np.random.default_rng(seed)
        made = case(KINDS[name], data, generator)
        n = int(generator.integers(1, made.tile.count + 1))
        begins = generator.integers(0, made.tile.count - n + 1, int(generator.integers(0, 6)))
        out = np.full((len(begins) + 1, n), 0xDEAD, np.uint32)
        tile = made.tile
        sample_for(made.kind)(
            tile.raw, tile.at, 2, made.floats, made.ints, tile.first, begins, out[:-1]
        )
        assert (out[:-1] == made.chunks(begins, n)).all(), seed
        assert (out[-1] == 0xDEAD).all()


@pytest.mark.parametrize("first", [True, False])
def test_a_rank_that_is_not_wanted_collects_nothing(first: bool) -> None:
    made = case(KINDS["two ranks"], "calm", np.random.default_rng(3))
    made.brackets[0 if first else 1] = NOTHING
    made.pivots[0 if first else 1] = -1
    room = made.tile.count + 8
    wanted, got = made.by_general_kernel(room), made.by_loop(room)
    other = 1 if first else 0
    assert got.filled.tolist() == wanted.filled.tolist()
    assert got.filled[1 - other] == 0
    assert got.equal.tolist() == wanted.equal.tolist()
    assert got.above[other] == wanted.above[other]
    assert got.pairs(other) == wanted.pairs(other)


def test_a_sweep_by_hand() -> None:
    """Of 5, 1, -3, 3, -4, 0, 2, 3, -9, 2.5 the bracket [2, 4] holds three 3s, 4, 2 and 2.5."""
    values = np.array([5.0, 1.0, -3.0, 3.0, -4.0, 0.0, 2.0, 3.0, -9.0, 2.5], np.float32)
    codes = np.array([NO, NO, F32])
    tile = Inputs(values.view(np.uint8), np.zeros(3, np.int64), codes, np.ones(3, np.int64), 50, 10)
    of = replace(KINDS["no base"], code=F32, kinds=(), ranks=1)
    none = np.zeros((2, 0), np.float32), np.zeros((2, 0, 6), np.int64)
    two, three, four = np.array([2, 3, 4], np.float32).view(np.uint32).tolist()
    pivots = np.array([[three, two, -1, -1]])
    seen = Case(of, tile, *none, np.array([[two, four]]), pivots).by_loop(100)
    assert (seen.above - 5).tolist() == [2]
    assert (seen.equal - 7).tolist() == [[3, 1, 0, 0]]
    two_and_a_half = int(np.float32(2.5).view(np.uint32))
    assert seen.pairs(0) == [(four, 54), (two_and_a_half, 59)]


def test_for_which_inputs_a_sweep_can_be_written() -> None:
    of = KINDS["bf16"]
    assert of.is_known
    assert replace(of, kinds=(CUT, BAND, DARE, IDENTITY)).is_known
    assert not replace(of, kinds=(CUT, ROW_BAND)).is_known
