"""What drops by rank see and keep, summed in blocks that do not end where rows or tiles do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergekit_lite.kernels.codec import CODES
from mergekit_lite.kernels.row_keys import row_scratch
from mergekit_lite.kernels.steps import ROW_DROP
from mergekit_lite.kernels.sums import SUM_BLOCK, kept_tile
from mergekit_lite.kernels.tile import work_shape
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._statistics import add_blocks, totals
from mergekit_lite.ops.transform.magprune import whole_and_kept
from tests.kernels.arrays import Floats
from tests.kernels.blocks import transforms

KEY = 0xFEDCBA987654321


def summed(x: Floats, at_once: int, density: float, epsilon: float) -> tuple[float, float]:
    """Return both sums of a matrix that is seen so many rows at a time."""
    size, width = x.size, x.shape[1]
    least, spread = np.array([density - epsilon, 2 * epsilon], np.float64).view(np.int64).tolist()
    numbers = [KEY & 0xFFFFFFFF, KEY >> 32, least, spread, 0]
    made = transforms(1, {(0, 0): (ROW_DROP, 1.0, numbers)})
    begun = np.full((1, 2, SUM_BLOCK), np.nan, np.float32)
    block = max(2048 // width, 1) * width
    work = np.full(work_shape(1, max(block, SUM_BLOCK)), np.nan, np.float32)
    parts = []
    for first in range(0, size, at_once * width):
        tile = x.reshape(-1)[first : first + at_once * width]
        blocks = -(-(first + len(tile)) // SUM_BLOCK) - first // SUM_BLOCK
        parts.append(np.zeros((blocks, 1, 2)))
        kept_tile(
            tile.view(np.uint8), np.zeros(2, np.int64), np.array([-1, CODES["F32"]], np.int64),
            np.array([0, 1], np.int64), made.kinds, made.floats, made.ints,
            np.zeros(1, np.int64), width, block, size, np.zeros(3, np.int64), work,
            np.empty(row_scratch(width), np.int64), begun, first, len(tile), parts[-1],
        )  # fmt: skip
    every = np.concatenate(parts)
    return add_blocks(every[:, 0, 0].tolist()), add_blocks(every[:, 0, 1].tolist())


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
    wanted = totals(whole_and_kept([torch.from_numpy(x)], place, params), gram=False)
    assert summed(x, rows, **params) == wanted.absolute
