"""What drops by rank see and keep, summed in blocks that do not end where rows or tiles do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergekit_lite.kernels.codec import CODES
from mergekit_lite.kernels.row_keys import row_scratch
from mergekit_lite.kernels.row_marks import keep_marked
from mergekit_lite.kernels.steps import FAR, ROW_DROP
from mergekit_lite.kernels.sums import SUM_BLOCK, kept_tile
from mergekit_lite.kernels.tile import work_shape
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._statistics import add_blocks, totals
from mergekit_lite.ops.transform.magprune import whole_and_kept
from tests.kernels.arrays import Floats, same
from tests.kernels.blocks import memory, transforms

KEY = 0xFEDCBA987654321


def summed(
    x: Floats, at_once: int, density: float, epsilon: float
) -> tuple[tuple[float, float], Floats]:
    """Return both sums of a matrix that is seen so many rows at a time, and what is marked."""
    size, width = x.size, x.shape[1]
    least, spread = np.array([density - epsilon, 2 * epsilon], np.float64).view(np.int64).tolist()
    numbers = [KEY & 0xFFFFFFFF, KEY >> 32, least, spread, 0]
    made = transforms(1, {(0, 0): (ROW_DROP, 1.0, numbers)})
    begun = np.full((1, 2, SUM_BLOCK), np.nan, np.float32)
    block = max(2048 // width, 1) * width
    work = np.full(work_shape(1, max(block, SUM_BLOCK)), np.nan, np.float32)
    parts, marks = [], 8 * row_scratch(width)
    scratch = np.full(row_scratch(width) + x.size // 8 + len(x) + 8, 77, np.int64)
    for first in range(0, size, at_once * width):
        tile = x.reshape(-1)[first : first + at_once * width]
        blocks = -(-(first + len(tile)) // SUM_BLOCK) - first // SUM_BLOCK
        parts.append(np.zeros((blocks, 1, 2)))
        kept_tile(
            tile.view(np.uint8), np.zeros(2, np.int64), np.array([-1, CODES["F32"]], np.int64),
            np.array([0, 1], np.int64), made.kinds, made.floats, made.ints,
            np.zeros(1, np.int64), np.full(1, marks), width, block, size, np.zeros(3, np.int64),
            work, scratch, begun, first, len(tile), parts[-1],
        )  # fmt: skip
    every = np.concatenate(parts)
    kept = x.reshape(-1).copy()
    keep_marked(kept, size, 0, width, scratch.view(np.uint8)[marks:], np.float32(1))
    sums = add_blocks(every[:, 0, 0].tolist()), add_blocks(every[:, 0, 1].tolist())
    return sums, kept.reshape(x.shape)


@pytest.mark.parametrize("shape", [(1, 3), (13, 700), (4, 4096), (3, 9001), (5000, 1)])
@pytest.mark.parametrize("at_once", [1, 3, 10_000])
def test_sums_are_those_of_the_specification(shape: tuple[int, int], at_once: int) -> None:
    generator = np.random.default_rng(shape[1])
    # Entries of many magnitudes, so that every other order of addition gives other bits.
    x = (generator.standard_normal(shape) * 10 ** generator.uniform(-3, 3, shape)).astype(
        np.float32
    )
    rows = max(at_once, -(-2048 // shape[1]))  # one call a row of one entry would take seconds
    params = {"density": 0.6, "epsilon": 0.0 if shape[1] == 1 else 0.3}
    place = Place(size=x.size, key=KEY)
    seen = whole_and_kept([torch.from_numpy(x)], place, params)
    sums, kept = summed(x, rows, **params)
    assert sums == totals(seen, gram=False).absolute
    assert same(kept, seen[1])


@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize("at_once", [4096, 3 * 4096])
def test_moments_are_those_of_the_specification(width: int, at_once: int) -> None:
    generator = np.random.default_rng(3)
    x = (generator.standard_normal(9003) * 10 ** generator.uniform(-3, 3, 9003)).astype(np.float32)
    made = transforms(1, {(0, 0): (FAR, 1.0, [])})
    begun, parts = np.full((1, 2, SUM_BLOCK), np.nan, np.float32), []
    at_once = at_once // 3 * 3 if width else at_once  # tiles of whole rows
    for first in range(0, x.size, at_once):
        tile = x[first : first + at_once]
        blocks = -(-(first + len(tile)) // SUM_BLOCK) - first // SUM_BLOCK
        parts.append(np.zeros((blocks, 1, 2)))
        kept_tile(
            tile.view(np.uint8), np.zeros(2, np.int64), np.array([-1, CODES["F32"]], np.int64),
            np.array([0, 1], np.int64), made.kinds, made.floats, made.ints,
            np.zeros(1, np.int64), np.full(1, -1), width, 2046, x.size, np.zeros(3, np.int64),
            *memory(1), begun, first, len(tile), parts[-1],
        )  # fmt: skip
    wanted = totals([torch.from_numpy(x)], absolute=False, plain=True)
    got = [add_blocks(np.concatenate(parts)[:, 0, i].tolist()) for i in (0, 1)]
    assert got == [wanted.plain[0], wanted.gram[0][0]]
