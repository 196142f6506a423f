"""Marks of what a drop by rank keeps: written once, applied any number of times."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit_lite.kernels.row_marks import keep_marked, mark_rows, marked_bytes
from tests.kernels.arrays import Floats, same
from tests.kernels.rows import DATA


def marked(kept: Floats, at_once: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return the marks of a matrix that is seen so many rows at a time, from any memory."""
    rows, width = kept.shape
    marks = np.full(marked_bytes(width, rows) + 3, 0xA5, np.uint8)
    for row in range(0, rows, at_once):
        part = kept[row : row + at_once].reshape(-1)
        mark_rows(part, len(part), row * width, width, marks)
    assert (marks[-3:] == 0xA5).all(), "written past the end"
    return marks


@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 63, 64, 65, 1000])
@pytest.mark.parametrize("data", DATA)
def test_marked_entries_are_multiplied_and_the_others_are_zero(data: str, width: int) -> None:
    generator = np.random.default_rng(width)
    x = DATA[data](generator, 5 * width).reshape(5, width)
    kept = np.where(generator.random(x.shape) < 0.4, x, np.float32(0))
    for at_once in (1, 2, 5):
        marks = marked(kept, at_once)
        got = x.copy()
        for row in range(0, 5, 3):
            part = got[row : row + 3].reshape(-1)
            keep_marked(part, len(part), row * width, width, marks, np.float32(1.5))
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = np.where(kept.view(np.uint32) != 0, x * np.float32(1.5), np.float32(0))
        assert same(got, wanted)


def test_a_mark_takes_a_bit() -> None:
    assert [marked_bytes(width, 3) for width in (1, 8, 9, 14_336)] == [3, 3, 6, 5376]
    # Entries 0, 3 and 4 of five, which are one byte; then 0, 2, .. of nine, in two.
    assert marked(np.array([[1, 0, 0, -2, 3]], np.float32), 1)[0] == 0b11001
    nine = np.array([[1, 0, 1, 0, 1, 0, 1, 0, 1]], np.float32)
    assert marked(nine, 1)[:2].tolist() == [0b11111, 0]


def test_minus_zero_is_marked_and_zero_is_not() -> None:
    assert marked(np.array([[-0.0, 0.0]], np.float32), 1)[0] == 1
