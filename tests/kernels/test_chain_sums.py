"""The written-out sweep for a drop's factor, against the general one and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit_lite.kernels import warm
from mergekit_lite.kernels.chain_ranks import Ranked
from mergekit_lite.kernels.chain_sums import kept_for
from mergekit_lite.kernels.codec import BF16, F32
from mergekit_lite.kernels.row_keys import row_scratch
from mergekit_lite.kernels.steps import CUT, DARE
from mergekit_lite.kernels.sums import SUM_BLOCK, kept_tile
from mergekit_lite.kernels.tile import work_shape
from tests.kernels.rows import DATA
from tests.kernels.test_chain_ranks import KINDS as RANKED
from tests.kernels.test_chain_ranks import case

NAMES = ("bf16", "two ranks", "a delta after a drop", "an absent input", "three transforms")
KINDS = {name: RANKED[name] for name in NAMES}
PLAIN = Ranked(-1, F32, True, (), 0)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    warm.compile_kernels([kept_for(kind) for kind in (*KINDS.values(), PLAIN)])


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", KINDS)
def test_sums_are_those_of_the_general_kernel(name: str, data: str) -> None:
    for seed in range(8):
        generator = np.random.default_rng(seed)
        made = case(KINDS[name], data, generator)
        tile, at = made.tile, len(made.kind.kinds)
        # Tiles begin at multiples of a block, which is what blocks are counted from.
        first = tile.first // SUM_BLOCK * SUM_BLOCK
        kinds = np.zeros((2, at + 1), np.int64)
        kinds[1] = [*made.kind.kinds, DARE]
        floats = np.ones((2, at + 1), np.float32)
        floats[:, :at] = made.floats[:, :at]
        ints = np.zeros((2, at + 1, 6), np.int64)
        ints[:, :at] = made.ints[:, :at]
        ints[1, at, :3] = generator.integers(0, 1 << 32, 3)
        blocks = -(-tile.count // SUM_BLOCK)
        wanted = np.full((blocks, 2, 2), -1.0)
        kept_tile(
            tile.raw, tile.at, tile.codes, tile.is_delta, kinds, floats, ints,
            np.array([-1, at]), np.full(2, -1), 0, 2048, first + tile.count, np.zeros(4, np.int64),
            np.empty(work_shape(2, SUM_BLOCK), np.float32), np.empty(row_scratch(0), np.int64),
            np.empty((2, 2, SUM_BLOCK), np.float32), first, tile.count, wanted,
        )  # fmt: skip
        got = np.full((blocks + 1, 2), -1.0)
        work = np.full(work_shape(2, SUM_BLOCK), np.nan, np.float32)
        kept_for(made.kind)(tile.raw, tile.at, 2, floats, ints, work, first, tile.count, got[:-1])
        assert np.array_equal(got[:-1], wanted[:, 1], equal_nan=True), seed
        assert (got[-1] == -1).all()


def test_what_is_kept_is_a_part_of_what_is_seen() -> None:
    values = np.full(SUM_BLOCK + 3, -2.0, np.float32)
    ints = np.zeros((1, 1, 6), np.int64)
    for keep, share in ((0, 0.0), (1 << 31, 0.5), ((1 << 32) - 1, 1.0)):
        ints[0, 0, :3] = 17, 4, keep
        sums = np.zeros((2, 2))
        kept_for(PLAIN)(
            values.view(np.uint8), np.zeros(2, np.int64), 1, np.ones((1, 1), np.float32), ints,
            np.empty(work_shape(1, SUM_BLOCK), np.float32), 0, len(values), sums,
        )  # fmt: skip
        assert sums[:, 0].tolist() == [2.0 * SUM_BLOCK, 6.0]
        assert sums[0, 1] / sums[0, 0] == pytest.approx(share, abs=0.05)


def test_kinds_with_other_transforms_before_have_loops_of_their_own() -> None:
    one, other = (Ranked(BF16, BF16, False, kinds, 0) for kinds in ((), (CUT,)))
    assert kept_for(one).file != kept_for(other).file
