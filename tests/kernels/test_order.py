"""The kernels that find ranks, on tiles small enough to count by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from mergekit_lite.kernels.order import (
    PIVOTS,
    histogram,
    magnitudes_of_tile,
    nth_equal,
    refine,
    scan_tile,
    squares,
)
from mergekit_lite.kernels.steps import CUT
from mergekit_lite.kernels.tile import BLOCK
from tests.kernels.blocks import Tile, Transforms, bits, memory, transforms

#      flat index 50   51   52    53   54    55   56   57   58    59
VALUES = [         5.0, 1.0, -3.0, 3.0, -4.0, 0.0, 2.0, 3.0, -9.0, 2.5]  # fmt: skip
NO_PIVOTS: tuple[float, ...] = ()


@dataclass
class Scan:
    """What a sweep has counted and collected, for one expert after the other."""

    above: list[int]
    equal: list[list[int]]
    collected: list[list[tuple[float, int]]]
    filled: list[int]


def scan(
    tile: Tile,
    brackets: Sequence[tuple[float, float] | None],
    *,
    pivots: Sequence[float] = (),
    room: int = 100,
    steps: Transforms | None = None,
    depth: int = 0,
    block: int = BLOCK,
    times: int = 1,
) -> Scan:
    """Scan a tile for one bracket (low, high) of each expert; None asks nothing of it."""
    experts = len(tile.experts)
    steps = steps or transforms(experts)
    limits = np.array([(bits(b[0]), bits(b[1])) if b else (1, 0) for b in brackets], np.int64)
    named = np.full((experts, 1, PIVOTS), -1, np.int64)
    named[:, 0, : len(pivots)] = [bits(value) for value in pivots]
    depths = np.array([-1 if b is None else depth for b in brackets], np.int64)
    above, filled = (np.zeros((experts, 1), np.int64) for _ in range(2))
    equal = np.zeros((experts, 1, PIVOTS), np.int64)
    magnitudes = np.full((experts, room), 0xDEAD, np.uint32)
    indices = np.full((experts, room), -7, np.int64)
    for _ in range(times):
        scan_tile(
            tile.raw, tile.at, tile.code, tile.is_delta, steps.kinds, steps.floats, steps.ints,
            depths, limits.reshape(experts, 1, 2), named, 0, block,
            above, filled, magnitudes, indices, tile.bad, *memory(experts, block),
            tile.first, tile.count, equal,
        )  # fmt: skip
    collected = []
    for e in range(experts):
        n = min(int(filled[e, 0]), room)
        pairs = zip(
            magnitudes[e, :n].view(np.float32).tolist(), indices[e, :n].tolist(), strict=True
        )
        collected.append(list(pairs))
    return Scan(above[:, 0].tolist(), equal[:, 0].tolist(), collected, filled[:, 0].tolist())


def lone(base: float = 0.0, **more: object) -> Tile:
    """Return a tile whose only expert has the deltas `VALUES`."""
    values = [base + value for value in VALUES]
    return Tile([base] * len(values), [values], first=50, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("base", [0.0, 16.0])
@pytest.mark.parametrize("block", [BLOCK, 8, 3, 1])
def test_a_bracket_is_collected_and_what_is_above_it_counted(base: float, block: int) -> None:
    """Both ends belong to the bracket."""
    seen = scan(lone(base), [(2.5, 4.0)], block=block)
    assert seen.above == [2]  # 5 and -9
    assert seen.collected == [[(3.0, 52), (3.0, 53), (4.0, 54), (3.0, 57), (2.5, 59)]]


def test_the_whole_range_collects_every_entry_zeros_too() -> None:
    seen = scan(lone(), [(0.0, 3e38)])
    assert seen.above == [0]
    assert seen.collected == [[(abs(v), 50 + i) for i, v in enumerate(VALUES)]]


@pytest.mark.parametrize("block", [BLOCK, 3])
def test_shared_magnitudes_are_counted_and_not_collected(block: int) -> None:
    seen = scan(lone(), [(2.0, 4.0)], pivots=[3.0, 2.0], block=block)
    assert seen.equal == [[3, 1, 0, 0]]
    assert seen.collected == [[(4.0, 54), (2.5, 59)]]
    assert seen.above == [2]


def test_all_places_for_shared_magnitudes_are_used() -> None:
    seen = scan(lone(), [(1.0, 4.0)], pivots=[3.0, 2.0, 4.0, 2.5])
    assert seen.equal == [[3, 1, 1, 1]]
    assert seen.collected == [[(1.0, 51)]]


def test_a_bracket_of_one_shared_magnitude_collects_nothing() -> None:
    seen = scan(lone(), [(3.0, 3.0)], pivots=[3.0])
    assert (seen.above, seen.equal, seen.collected) == ([3], [[3, 0, 0, 0]], [[]])


def test_counts_and_what_is_collected_add_up_over_tiles() -> None:
    seen = scan(lone(), [(4.0, 5.0)], pivots=[5.0], times=3)
    assert (seen.above, seen.equal) == ([3], [[3, 0, 0, 0]])
    assert seen.collected == [[(4.0, 54)] * 3]


def test_experts_are_scanned_apart_and_one_may_ask_nothing() -> None:
    tile = Tile([0.0] * 4, [[1.0, 2, 3, 4], [9.0, 9, 9, 9], None, [-4.0, 3, -2, 1]])
    seen = scan(tile, [(2, 3), None, (0, 1), (4, 4)])
    assert seen.above == [1, 0, 0, 0]
    assert seen.collected == [
        [(2.0, 1), (3.0, 2)],
        [],
        [(0.0, i) for i in range(4)],
        [(4.0, 0)],
    ]


@pytest.mark.parametrize("room", [15, 16, 17])
def test_too_many_to_hold_are_told_and_none_is_written_past_the_end(room: int) -> None:
    """Twenty entries are in the bracket; a fill above the room says that they did not fit."""
    tile = Tile([0.0] * 20, [[1.0] * 20])
    seen = scan(tile, [(1.0, 1.0)], room=room)
    assert seen.filled == [room + 1]
    assert scan(tile, [(1.0, 1.0)], room=room, block=4).filled == [room + 1]
    assert scan(tile, [(1.0, 1.0)], room=32).filled == [20]


def test_a_rank_is_of_the_delta_after_the_transforms_before_it() -> None:
    """The first transform keeps magnitudes above 2.5, and the 2.5 and 3 up to entry 55."""
    steps = transforms(1, {(0, 0): (CUT, 1.0, [bits(3), 55])})
    assert scan(lone(), [(1.0, 4.0)], steps=steps, depth=1).collected == [
        [(3.0, 52), (3.0, 53), (4.0, 54)]
    ]
    assert len(scan(lone(), [(1.0, 4.0)], steps=steps, depth=0).collected[0]) == 7


def test_what_is_not_finite_is_counted_by_input_and_sorts_above_all() -> None:
    nan, inf = float("nan"), float("inf")
    tile = Tile([0.0, inf, 0.0, 0.0], [[1.0, 1.0, nan, -inf]])
    seen = scan(tile, [(0.5, 2.0)])
    assert tile.bad.tolist() == [1, 2, 0]
    assert seen.above == [3]
    assert seen.collected == [[(1.0, 0)]]


@pytest.mark.parametrize("block", [BLOCK, 3])
def test_magnitudes_of_one_expert(block: int) -> None:
    tile = Tile([1.0] * 5, [[9.0] * 5, [0.0, 1.0, 4.0, -2.0, 1.5]], first=7)
    steps = transforms(2, {(1, 0): (CUT, 1.0, [bits(1.0), 8])})

    def of(expert: int, depth: int, *begins: int, n: int = 5) -> list[list[float]]:
        out = np.zeros((len(begins), n), np.uint32)
        magnitudes_of_tile(
            tile.raw, tile.at, tile.code, tile.is_delta, steps.kinds, steps.floats, steps.ints,
            expert, depth, 0, block, *memory(2, block), tile.first, np.array(begins, np.int64), out,
        )  # fmt: skip
        return list(out.view(np.float32).tolist())

    assert of(0, 0, 0) == [[8.0] * 5]
    assert of(1, 0, 0) == [[1.0, 0.0, 3.0, 3.0, 0.5]]
    assert of(1, 1, 0) == [[1.0, 0.0, 3.0, 3.0, 0.0]]
    assert of(1, 1, 3, 0, n=2) == [[3.0, 0.0], [1.0, 0.0]]
    assert of(1, 1) == []


def some_bits() -> NDArray[np.uint32]:
    """Magnitudes in three bins of the upper histogram, two of them side by side."""
    one = 0x3F800000
    return np.array([one, one + 5, one + 0x8000, 0, one + 5, 0x7F800000, one + 0x7FFF], np.uint32)


def test_the_upper_histogram_counts_bits_30_to_15() -> None:
    bins = np.zeros(1 << 16, np.int64)
    histogram(some_bits(), 7, bins)
    assert {int(i): int(bins[i]) for i in bins.nonzero()[0]} == {
        0: 1, 0x3F80_0000 >> 15: 4, 0x3F80_8000 >> 15: 1, 0x7F80_0000 >> 15: 1,
    }  # fmt: skip
    histogram(some_bits(), 2, bins)
    assert bins[0x3F80_0000 >> 15] == 6


def test_the_lower_histogram_counts_bits_14_to_0_of_one_bin() -> None:
    bins = np.zeros(1 << 15, np.int64)
    refine(some_bits(), 7, 0x3F80_0000 >> 15, bins)
    assert {int(i): int(bins[i]) for i in bins.nonzero()[0]} == {0: 1, 5: 2, 0x7FFF: 1}


@pytest.mark.parametrize(
    ("nth", "wanted"), [(1, (1, 1)), (2, (4, 2)), (3, (6, 3)), (4, (-1, 3)), (0, (-1, 3))]
)
def test_the_nth_of_equal_magnitudes(nth: int, wanted: tuple[int, int]) -> None:
    values = np.array([1, 7, 2, 3, 7, 1, 7, 7], np.uint32)
    found = np.array([5, 5], np.int64)
    nth_equal(values, 7, np.uint32(7), nth, found)
    assert tuple(found) == wanted


def test_squares_are_told_by_the_bits_that_entries_begin_with() -> None:
    values = np.array([1.5, 1.5, 1.501, 0.0, 1e-45, 3e38, 1e-45], np.float32).view(np.uint32)
    bins = np.zeros(2 << 16, np.int64)
    squares(values, len(values), bins)
    squares(values, 1, bins)
    wanted = np.zeros_like(bins)
    for each in [*values.tolist(), values[0].item()]:
        digit, lower = each >> 15, each & 0x7FFF
        wanted[2 * digit : 2 * digit + 2] += (1 << 40) + lower, lower * lower
    assert np.array_equal(bins, wanted)
    assert (bins[::2] >> 40).sum() == 8
