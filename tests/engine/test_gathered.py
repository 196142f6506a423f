"""Inputs made of rows of other tensors, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.gathered import Gathered
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.plan.row_maps import MEAN, SHARED, ZERO, Place, RowMap, row_map

FILLED = ((-1, -1),)
"""Stands for a row that is the mean of the others."""


def mapped(rows: Sequence[tuple[Place, ...]], stored: Sequence[int]) -> RowMap:
    """Return the map in which each row is the mean of its places: none are zeros."""
    words = {0: (ZERO, -1)}
    found = [
        (MEAN, -1) if p == FILLED else p[0] if len(p) == 1 else words.get(len(p), (SHARED, -1))
        for p in rows
    ]
    parts, at = np.array(found, np.int64).reshape(-1, 2).T
    shared = {row: places for row, places in enumerate(rows) if len(places) > 1}
    return row_map(parts, at, stored, shared)


@dataclass
class Held:
    """A tensor in memory that counts how often it is read."""

    values: NDArray[np.float32]
    dtype: str = "F32"
    is_delta: bool = False
    reads: list[tuple[int, int]] = field(default_factory=list)

    def offset(self, first: int) -> int:
        return 16 + first * DTYPE_BYTES[self.dtype]

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        self.reads.append((first, count))
        part = self.values.reshape(-1)[first : first + count]
        assert part.size == count
        stored = (part.view(np.uint32) >> 16).astype(np.uint16) if self.dtype == "BF16" else part
        out[:] = np.ascontiguousarray(stored).view(np.uint8)


def gathered(
    rows: list[tuple[Place, ...]], parts: list[Held], *, dtype: str = "F32", tile: int = 0
) -> NDArray[np.float32]:
    """Return all rows of an input, brought in by tiles of `tile` entries."""
    width = parts[0].values.shape[1]
    found = mapped(rows, [len(part.values) for part in parts])
    supply = Gathered(parts, found, width, dtype)
    size, done = len(rows) * width, []
    for first in range(0, size, tile or max(size, 1)):
        count = min(tile or size, size - first)
        raw = np.full(count * DTYPE_BYTES[dtype], 0xAB, np.uint8)
        supply.fill(first, count, raw)
        done.append(as_float32(raw, dtype))
    return np.concatenate(done).reshape(len(rows), width)


def numbers(rows: int, width: int = 3, start: float = 1.0) -> NDArray[np.float32]:
    return (start + np.arange(rows * width, dtype=np.float32)).reshape(rows, width)


def test_rows_come_from_where_the_map_says() -> None:
    one, two = Held(numbers(3)), Held(numbers(2, start=100))
    rows = [((0, 2),), ((0, 0),), (), ((1, 1),), ((0, 1), (1, 0)), FILLED]
    assert gathered(rows, [one, two]).tolist() == [
        [7, 8, 9],
        [1, 2, 3],
        [0, 0, 0],
        [103, 104, 105],
        [52, 53, 54],
        [40.75, 41.75, 42.75],
    ]


def test_consecutive_rows_are_one_read() -> None:
    part = Held(numbers(20000, 3))
    gathered([((0, row),) for row in range(5000, 9000)] + [((0, 3),)], [part])
    assert part.reads == [(15000, 12000), (9, 3)]


def test_many_short_runs_that_lie_close_are_one_read() -> None:
    part = Held(numbers(100))
    order = [((0, row ^ 1),) for row in range(40)]
    found = gathered(order, [part])
    assert part.reads == [(0, 120)]
    assert found[:, 0].tolist() == [part.values[row ^ 1, 0] for row in range(40)]


def test_rows_far_apart_are_read_one_by_one() -> None:
    part = Held(numbers(20000))
    found = gathered([((0, 19000),), ((0, 1),), ((0, 2),), ((0, 8000),)], [part])
    assert part.reads == [(3, 6), (24000, 3), (57000, 3)]
    assert found[:, 0].tolist() == [part.values[row, 0] for row in (19000, 1, 2, 8000)]


def test_a_row_may_be_used_again_and_again() -> None:
    part = Held(numbers(9))
    found = gathered([((0, 1),), ((0, 2),), ((0, 1),), ((0, 1),), ((0, 0),)], [part])
    assert found[:, 0].tolist() == [part.values[row, 0] for row in (1, 2, 1, 1, 0)]


def test_stored_bytes_are_moved_as_they_are_where_nothing_is_averaged() -> None:
    part = Held(np.array([[1.5, -0.0], [np.nan, 3.0]], np.float32), "BF16")
    supply = Gathered([part], mapped([((0, 1),), ((0, 0),)], [2]), 2, "BF16")
    raw = np.zeros(8, np.uint8)
    supply.fill(0, 4, raw)
    assert raw.view(np.uint16).tolist() == [0x7FC0, 0x4040, 0x3FC0, 0x8000]
    assert (supply.offset(0), supply.offset(2)) == (16 + 4, 16)


def test_parts_of_other_dtypes_meet_in_fp32() -> None:
    one, two = Held(numbers(1), "BF16"), Held(numbers(1, start=0.1))
    found = gathered([((0, 0),), ((1, 0),), ((0, 0), (1, 0))], [one, two])
    assert found[0].tolist() == [1, 2, 3]
    assert np.array_equal(found[1], two.values[0])
    assert np.array_equal(found[2], (found[0] + found[1]) / np.float32(2))


places = st.one_of(
    st.just(()),
    st.just(FILLED),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=3).map(tuple),
)


@settings(max_examples=80)
@given(st.lists(places, min_size=1, max_size=12), st.integers(1, 40))
def test_tiles_change_nothing(rows: list[tuple[Place, ...]], tile: int) -> None:
    parts = [Held(numbers(5) / 7), Held(numbers(5, start=50) / 3)]
    whole = gathered(rows, parts)
    assert np.array_equal(gathered(rows, parts, tile=tile), whole)
    plain = [p for p in rows if p and p != FILLED]
    expected = [np.mean([parts[i].values[j] for i, j in p], 0) for p in plain]
    assert np.allclose([w for w, p in zip(whole, rows, strict=True) if p and p != FILLED], expected)


def test_a_map_survives_json() -> None:
    import json

    made = mapped([((0, 1),), ((0, 2),), ((0, 0), (1, 4)), FILLED, FILLED, ()], [3, 5])
    raw = {name: getattr(made, name) for name in RowMap.__slots__}
    assert RowMap.from_plain(json.loads(json.dumps(raw))) == made
    assert made.runs == ((0, 2, 0, 1),)
    assert made.filled == ((3, 2),)
    assert made.averages


@pytest.mark.parametrize("rows", [[], [FILLED]])
def test_nothing_to_gather_is_no_rows_or_zeros(rows: list[tuple[Place, ...]]) -> None:
    supply = Gathered([Held(numbers(2))], mapped(rows, [2]), 3, "F32")
    raw = np.full(len(rows) * 12, 7, np.uint8)
    supply.fill(0, len(rows) * 3, raw)
    assert not raw.any()
