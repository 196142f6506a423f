"""Windows onto matrices: what is cut out, padded and stacked, however it is cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergekit_lite.engine.blocks import Blocks
from mergekit_lite.plan.runs import is_moved, runs_of
from mergekit_lite.plan.types import Block, Piece, Plan, Read


@dataclass
class Array:
    """Supplies the entries of an array."""

    values: NDArray[np.float32]
    dtype = "F32"
    is_delta = False

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        out.view(np.float32)[:] = self.values.reshape(-1)[first : first + count]


sizes = st.integers(1, 6)
windows = st.tuples(sizes, sizes, st.integers(0, 7), st.integers(0, 7), sizes, sizes)


def shown(matrix: NDArray[np.float32], block: Block) -> NDArray[np.float32]:
    """Return a window by slicing a matrix with zeros around it."""
    wide = np.zeros((20, 20), np.float32)
    wide[: matrix.shape[0], : matrix.shape[1]] = matrix
    top, left = block.first
    return wide[top : top + block.shape[0], left : left + block.shape[1]] * block.scale


@given(st.lists(windows, min_size=1, max_size=4), st.integers(1, 40), st.sampled_from([1.0, -0.5]))
def test_windows_are_slices_with_zeros_around(
    drawn: list[tuple[int, ...]], tile: int, scale: float
) -> None:
    pairs, wanted = [], []
    for number, (rows, columns, top, left, high, wide) in enumerate(drawn):
        matrix = np.arange(1, rows * columns + 1, dtype=np.float32).reshape(rows, columns) + number
        block = Block(Read("a", "m"), (rows, columns), (top, left), (high, wide), scale)
        pairs.append((block, Array(matrix)))
        wanted.append(shown(matrix, block).reshape(-1))
    expected = np.concatenate(wanted)
    supply = Blocks(pairs)  # type: ignore[arg-type]
    found = np.full(expected.size, np.nan, np.float32)
    for first in range(0, expected.size, tile):
        part = found[first : first + tile]
        supply.fill(first, part.size, part.view(np.uint8))
    assert np.array_equal(found, expected)


def test_nothing_behind_a_window_is_zero() -> None:
    supply = Blocks([(Block(Read("", "", zero=True), (0, 3), (0, 0), (2, 3)), None)])
    out = np.ones(6, np.float32)
    supply.fill(0, 6, out.view(np.uint8))
    assert not out.any()


def test_whole_rows_are_runs_of_bytes() -> None:
    fused = Read("a", "qkv", pieces=(Piece("qkv", 30, 12),))
    rows = Block(fused, (4, 3), (1, 0), (2, 3))
    read = Read("a", "qkv", blocks=(rows, Block(Read("b", "up"), (2, 3), (0, 0), (2, 3))))
    assert is_moved(read)
    assert list(runs_of(read, 12)) == [("a", "qkv", 33, 6), ("b", "up", 0, 6)]
    for other in (
        Block(Read("b", "up"), (2, 3), (0, 1), (2, 2)),
        Block(Read("b", "up"), (2, 3), (0, 0), (3, 3)),
        Block(Read("b", "up"), (2, 3), (0, 0), (2, 3), 0.5),
        Block(Read("b", "up", made=True), (2, 3), (0, 0), (2, 3)),
    ):
        assert not is_moved(Read("b", "up", blocks=(other,)))


def test_a_plan_keeps_its_blocks_as_json() -> None:
    from dataclasses import replace

    from mergekit_lite.plan.types import Job

    block = Block(Read("b", "up"), (2, 3), (0, 1), (2, 2), 0.5)
    job = Job("x", "F32", (2, 2), 0, 0, "merge", (Read("b", "up", blocks=(block,)),))
    plan = replace(Plan({}, (job,), (), 0, 1, "F32"), moe={"target": "mixtral"})
    assert Plan.from_json(plan.to_json()) == plan
