"""The fused loop on tiles small enough to merge by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mergekit_lite.kernels.codec import CODES, WIDTHS
from mergekit_lite.kernels.combine import MAX, MEAN, SUM, VOTE, WEIGHTED_SUM
from mergekit_lite.kernels.steps import BAND, CUT, FAR, IDENTITY
from mergekit_lite.kernels.tile import BLOCK, merge_tile
from tests.kernels.blocks import TORCH, Tile, Transforms, bits, memory, transforms

NAN, INF = float("nan"), float("inf")


def merged(
    tile: Tile,
    *,
    weights: Sequence[float] = (),
    steps: Transforms | None = None,
    combine: int = WEIGHTED_SUM,
    divisor: float = 0.0,
    options: Sequence[int] = (0, MEAN, 1, 0),
    mask: tuple[int, int] = (-1, 0),
    limits: Sequence[Sequence[float]] = (),
    posts: Sequence[float] = (),
    weight_space: bool = False,
    dtype: str = "F32",
    block: int = BLOCK,
) -> list[float]:
    """Return the entries that the kernel writes for a tile."""
    steps = steps or transforms(len(tile.experts))
    out = np.full(tile.count * WIDTHS[CODES[dtype]] + 8, 0xEE, np.uint8)
    merge_tile(
        tile.raw, tile.at, tile.code, tile.is_delta, weight_space,
        steps.kinds, steps.floats, steps.ints,
        combine, np.array(weights or [1.0] * len(tile.experts), np.float32), np.float32(divisor),
        np.array([*options, *mask], np.int64), np.array(posts, np.float32),
        np.array(limits or np.zeros((2, 0)), np.float32), 0, block, out, CODES[dtype],
        tile.bad, tile.norms, *memory(len(tile.experts), block), tile.first, tile.count,
    )  # fmt: skip
    assert (out[-8:] == 0xEE).all(), "written past the end"
    return list(torch.from_numpy(out[:-8].copy()).view(TORCH[dtype]).tolist())


def test_weighted_deltas_above_the_base() -> None:
    """8 + 0.5 * (9 - 8) - 2 * (10 - 8) = 4.5, and so on."""
    tile = Tile([8, 1, -4], [[9, 1, -2], [10, 2, -4]])
    assert merged(tile, weights=[0.5, -2]) == [4.5, -1.0, -3.0]
    assert tile.norms.tolist() == [0.0, 1 + 0 + 4, 4 + 1 + 0]
    assert tile.bad.tolist() == [0, 0, 0, 0]


def test_a_divisor_and_posts_act_on_the_delta_alone() -> None:
    """10 + (6 + 2) / 4 * 3 * 0.5 = 13."""
    tile = Tile([10.0], [[16.0], [12.0]])
    assert merged(tile, divisor=4, posts=[3, 0.5]) == [13.0]


def test_in_weight_space_the_base_is_no_part_of_the_result() -> None:
    tile = Tile(None, [[2.0, 4.0], [6.0, 8.0]])
    assert merged(tile, weights=[1, 3], divisor=4, weight_space=True) == [5.0, 7.0]
    assert tile.norms.tolist() == [0.0, 0.0, 0.0]


def test_in_weight_space_a_delta_is_added_to_the_base_and_an_absent_expert_is_the_base() -> None:
    tile = Tile([1.0, -0.0], [[0.5, 0.0], None], deltas=[0])
    got = merged(tile, weights=[2, 0.5], weight_space=True)
    assert got == [2 * 1.5 + 0.5 * 1.0, 0.0]


def test_an_absent_expert_has_no_delta() -> None:
    tile = Tile([1.0, 2.0], [[3.0, 2.5], None])
    assert merged(tile) == [3.0, 2.5]
    assert tile.norms.tolist() == [0.0, 4.25, 0.0]


def test_a_delta_of_an_adapter_is_taken_as_it_is() -> None:
    tile = Tile([1.0, 2.0], [[0.25, -0.5]], deltas=[0])
    assert merged(tile) == [1.25, 1.5]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_the_base_stays_bit_for_bit_where_the_merged_delta_is_zero(dtype: str) -> None:
    """-0.0 + 0.0 would be 0.0."""
    tile = Tile([-0.0, -0.0, 0.0, -0.0], [[-0.0, 0.0, -0.0, 1.0], [-0.0] * 3 + [-1.0]], dtype)
    assert str(merged(tile, dtype=dtype)) == "[-0.0, -0.0, 0.0, -0.0]"


def test_the_base_stays_where_a_post_makes_the_delta_zero() -> None:
    assert str(merged(Tile([-0.0, 5.0], [[1.0, 9.0]]), posts=[0.0])) == "[-0.0, 5.0]"


def test_what_is_not_finite_is_counted_by_input() -> None:
    tile = Tile([0.0, NAN, 0.0, 1.0], [[INF, 0.0, 0.0, 1.0], [0.0, 0.0, -INF, NAN]])
    got = merged(tile)
    assert got[0] == INF
    assert got[2] == -INF
    assert np.isnan(got[1])
    assert np.isnan(got[3])
    assert tile.bad.tolist() == [1, 1, 2, 4]


def test_a_result_that_overflows_its_dtype_is_counted_for_the_output() -> None:
    tile = Tile([60_000.0, 1.0], [[120_000.0, 1.0]])
    assert merged(tile, dtype="F16") == [INF, 1.0]
    assert tile.bad.tolist() == [0, 0, 1]


def test_counts_and_norms_add_up_over_tiles() -> None:
    tile = Tile([0.0, 0.0], [[NAN, 2.0]])
    merged(tile)
    tile.norms[1] = 7.0  # of an earlier tile
    tile.bad[:] = [10, 20, 30]
    clean = Tile([0.0], [[3.0]])
    clean.bad, clean.norms = tile.bad, tile.norms
    merged(clean)
    assert tile.norms.tolist() == [0.0, 16.0]
    assert tile.bad.tolist() == [10, 20, 30]


def test_rounding_happens_once_and_to_even() -> None:
    """1 + 2**-8 + 2**-8 in BF16: in steps each addition would be rounded away."""
    step = 2.0**-8
    tile = Tile([1.0, 1.0, 1.0], [[1 + step, 1 + step, 1.0], [1 + step, 1.0, 1 + 3 * step]])
    assert merged(tile, dtype="BF16") == [1 + 2 * step, 1.0, 1 + 4 * step]


def test_the_dtype_of_the_result_may_be_wider_than_that_of_the_inputs() -> None:
    tile = Tile([1.0, 2.0], [[1.5, 3.0]], "BF16")
    assert merged(tile, weights=[0.1], dtype="F32") == [
        float(np.float32(1) + np.float32(0.1) * np.float32(0.5)),
        float(np.float32(2) + np.float32(0.1)),
    ]


#                  elected by mass: +        -          + (tie)    -          nobody
VOTED = Tile(
    [0.0] * 5, [[3.0, 1.0, 1.0, -2.0, 0.0], [-1.0, -2.0, -1.0, -4.0, 0.0], [1.0, 0.5, 0, 1, 0]]
)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((0, MEAN, 1, 0), [2.0, -2.0, 1.0, -3.0, 0.0]),
        ((0, SUM, 1, 0), [4.0, -2.0, 1.0, -6.0, 0.0]),
        ((0, MAX, 1, 0), [3.0, -2.0, 1.0, -4.0, 0.0]),
        ((0, SUM, 0, 0), [4.0, -2.0, 0.0, -6.0, 0.0]),
        ((1, SUM, 1, 0), [4.0, 1.5, 1.0, -6.0, 0.0]),
    ],
    ids=["mean", "sum", "max", "a tie elects nobody", "by count"],
)
def test_votes(options: tuple[int, int, int, int], wanted: list[float]) -> None:
    assert merged(VOTED, combine=VOTE, options=options) == wanted


def test_weights_count_in_the_vote_and_in_the_mean() -> None:
    """0.5 * 3 < 2 * 1, so minus wins; its mean weighs one expert alone."""
    tile = Tile([10.0], [[13.0], [9.0]])
    assert merged(tile, combine=VOTE, weights=[0.5, 2]) == [9.0]


def test_a_cut_keeps_ties_up_to_a_flat_index_of_the_tensor() -> None:
    """The tile begins at entry 100: of the tied 2s those before entry 103 stay."""
    tile = Tile([0.0] * 5, [[2.0, -3.0, -2.0, 2.0, 1.0]], first=100)
    steps = transforms(1, {(0, 0): (CUT, 1.0, [bits(2), 103])})
    assert merged(tile, steps=steps) == [2.0, -3.0, -2.0, 0.0, 0.0]
    assert tile.norms[1] == 22.0, "the norm is of the delta as it came"


def test_a_band_drops_from_both_ends_and_experts_have_their_own_steps() -> None:
    tile = Tile([0.0] * 4, [[9.0, 1.0, 4.0, -5.0], [9.0, 1.0, 4.0, -5.0]])
    steps = transforms(
        2,
        {
            (0, 0): (BAND, 1.0, [bits(9), 4, bits(4), 4]),
            (1, 0): (IDENTITY, 1.0, []),
            (1, 1): (CUT, 1.0, [bits(9), 4]),
        },
    )
    assert merged(tile, steps=steps, weights=[1, 100]) == [900.0, 0.0, 4.0, -5.0]


def test_claims_go_by_the_deltas_as_they_came_and_by_each_ones_limit() -> None:
    """Deltas 4 8 1 and 6 1 0; the first one's cut leaves sums of 10, 9 and 0."""
    tile = Tile([1.0, 1.0, 1.0], [[5.0, 9.0, 2.0], [7.0, 2.0, 1.0]])
    steps = transforms(2, {(0, 0): (CUT, 1.0, [bits(4), 99])})
    mine = {"steps": steps, "limits": [[0, 0], [2.0, 0.125]]}
    # 4 > 2 * 6 is no claim, 6 > 0.125 * 4 is one; 8 > 2 * 1 is, 1 > 0.125 * 8 not; 1 > 2 * 1 not.
    assert merged(tile, mask=(0, 1), posts=[1.0], **mine) == [11.0, 10.0, 1.0]
    assert merged(tile, mask=(0, 2), posts=[1.0], **mine) == [1.0, 1.0, 1.0]
    # Of 20 and 18, 6 > 0.125 * 14 alone is a claim.
    assert merged(tile, mask=(1, 1), posts=[2.0, 0.5], **mine) == [11.0, 1.0, 1.0]


def test_a_cut_by_deviation_keeps_what_is_far_from_the_mean() -> None:
    tile = Tile([0.0] * 5, [[2.0, -1.0, 0.0, -2.5, 3.0]])
    far = (FAR, 1.0, np.array([1.0, 2.0], np.float32).view(np.uint32).tolist())
    assert merged(tile, steps=transforms(1, {(0, 0): far})) == [0.0, 0.0, 0.0, -2.5, 0.0]


@pytest.mark.parametrize("block", [1, 3, 7, BLOCK])
@pytest.mark.parametrize("count", [1, 6, 7, 8, 20])
def test_a_tile_is_the_same_in_any_block(count: int, block: int) -> None:
    base = [float(i % 5) for i in range(count)]
    experts = [[b + (i * 7 % 11) - 5 for i, b in enumerate(base)] for _ in range(2)]
    tile = Tile(base, experts, "BF16", first=1000)
    steps = transforms(2, {(0, 0): (CUT, 1.0, [bits(3), 1007])})
    wanted = []
    for i, b in enumerate(base):
        delta = experts[0][i] - b
        kept = abs(delta) > 3 or (abs(delta) == 3 and 1000 + i < 1007)
        wanted.append(b + (delta if kept else 0.0) - 0.5 * delta)
    assert merged(tile, steps=steps, weights=[1, -0.5], block=block) == wanted
