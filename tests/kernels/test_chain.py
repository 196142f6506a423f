"""Loops written out for a kind of row against the kernel for any row, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mergekit_lite.kernels import warm
from mergekit_lite.kernels.chain import MOST_INPUTS, PIECE, Kind, kernel_for
from mergekit_lite.kernels.codec import BF16, F16, F32, F64, WIDTHS
from mergekit_lite.kernels.combine import (
    ACTIVE_MEAN,
    CLAIMED,
    CLIPPED,
    FARTHEST,
    MAX,
    MEAN,
    SCALED_MEAN,
    SUM,
    VOTE,
    WEIGHTED_SUM,
)
from mergekit_lite.kernels.steps import BAND, CUT, DARE, FAR, IDENTITY, ROW_BAND
from mergekit_lite.kernels.tile import BLOCK, merge_tile
from tests.kernels.arrays import Floats
from tests.kernels.blocks import memory
from tests.kernels.rows import DATA, Inputs, inputs, numbers, stored

BAD = 100  # counted in earlier tiles
NO = -1


def kind(codes: tuple[int, ...], **more: Any) -> Kind:
    """Return a kind of row, a plain sum of deltas unless something else is said."""
    experts = len(codes) - 1
    plain = Kind(
        codes=codes, deltas=tuple(code == NO for code in codes[1:]), weight_space=False,
        kinds=((),) * experts, combine=WEIGHTED_SUM, by_count=False, aggregate=MEAN,
        zero_plus=False, signed=False, divided=False, posts=0, out_code=codes[0],
    )  # fmt: skip
    return replace(plain, **more)


B2, B3, B4 = (BF16,) * 2, (BF16,) * 3, (BF16,) * 4
KINDS = {
    "one expert": kind(B2, posts=1),
    "ties": kind(B4, kinds=((CUT,),) * 3, combine=VOTE, zero_plus=True, posts=1),
    "ties by count, summed": kind(
        (BF16, F16, F32), kinds=((CUT,),) * 2, combine=VOTE, by_count=True, aggregate=SUM,
        out_code=F16,
    ),
    "ties, the largest, one absent": kind(
        (F32, NO, F64, BF16), kinds=((CUT,),) * 3, combine=VOTE, aggregate=MAX, zero_plus=True,
    ),
    "signed mean with a delta": kind(
        (BF16, F32, BF16), deltas=(True, False), combine=VOTE, signed=True, posts=2, out_code=F64
    ),
    "breadcrumbs": kind(B3, kinds=((BAND,),) * 2, divided=True, out_code=F32),
    "dare": kind((F16,) * 3, kinds=((DARE,),) * 2, combine=VOTE, zero_plus=True),
    "dare, then a cut": kind(
        (F32,) * 3, kinds=((DARE, CUT),) * 2, combine=VOTE, by_count=True, zero_plus=True
    ),
    "three transforms": kind(
        (BF16, BF16, F16), kinds=((CUT, BAND, DARE), (IDENTITY, CUT, IDENTITY)), posts=1
    ),
    "two cuts": kind((F64,) * 2, kinds=((BAND, CUT),), combine=VOTE, by_count=True, aggregate=MAX),
    "weights": kind((NO, BF16, F16, F64), weight_space=True, divided=True, out_code=F16),
    "weights, a delta, one absent": kind(
        (BF16, F32, NO, BF16), deltas=(True, True, False), weight_space=True, out_code=F32
    ),
    "largest": kind((BF16, F32, NO, F16), combine=FARTHEST, posts=1),
    "active": kind(B3, kinds=((CUT,),) * 2, combine=ACTIVE_MEAN),
    "scaled": kind(B4, combine=SCALED_MEAN, posts=1),
    "claimed": kind((F32, BF16, F16, NO), combine=CLAIMED, aggregate=2, posts=1),
    "masked": kind((BF16, F32, NO, F16), kinds=((DARE,),) * 3, posts=2, mask=1, least=1),
    "claimed, then masked": kind(B3, combine=CLAIMED, aggregate=1, posts=2, mask=1, least=2),
    "far ones": kind((BF16, F16), kinds=((FAR, CUT),), out_code=F32),
    "clipped": kind((BF16, F32), combine=CLIPPED, out_code=F32),
    "one cut": kind((NO, F32), deltas=(True,), kinds=((CUT,),), out_code=F32),
    "nothing but the base": kind((F32, NO), out_code=BF16),
    "no base": kind((NO, BF16, F32), deltas=(True, False), out_code=BF16),
    "eleven experts": kind((BF16,) * 12, kinds=((CUT,),) * 11, combine=VOTE, zero_plus=True),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    warm.compile_kernels([kernel_for(each) for each in KINDS.values()])


@dataclass
class Made:
    """What a loop has written."""

    out: NDArray[np.uint8]
    bad: list[int]
    norms: NDArray[np.float64]


@dataclass
class Case:
    """A tile and all numbers that a loop over it is given."""

    kind: Kind
    tile: Inputs
    floats: Floats
    ints: NDArray[np.int64]
    weights: Floats
    divisor: np.float32
    posts: Floats
    limits: Floats = field(default_factory=lambda: np.zeros((2, 0), np.float32))

    def memory(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]]:
        width, inputs = WIDTHS[self.kind.out_code], len(self.kind.codes)
        out = np.full(self.tile.count * width + 64, 0xEE, np.uint8)
        return out, np.full(inputs + 1, BAD, np.int64), np.full(inputs, 0.25)

    def by_general_kernel(self) -> Made:
        k, tile = self.kind, self.tile
        rows = np.array(k.kinds, np.int64).reshape(len(k.kinds), -1)
        chosen = [k.by_count, k.aggregate, k.zero_plus, k.signed, k.mask, k.least]
        options = np.array(chosen, np.int64)
        out, bad, norms = self.memory()
        merge_tile(
            tile.raw, tile.at, tile.codes, tile.is_delta, k.weight_space, rows, self.floats,
            self.ints, k.combine, self.weights, self.divisor, options, self.posts, self.limits, 0,
            BLOCK, out, k.out_code, bad, norms, *memory(len(k.kinds)), tile.first, tile.count,
        )  # fmt: skip
        return Made(out, bad.tolist(), norms)

    def by_loop(self, tile: int = 1 << 30) -> Made:
        """Return what the loop writes, called tile after tile as a run does."""
        whole, bad, norms = self.memory()
        width = WIDTHS[self.kind.out_code]
        for done in range(0, self.tile.count, tile):
            n = min(tile, self.tile.count - done)
            out = whole[done * width : done * width + n * width]
            loop = kernel_for(self.kind).on(
                self.tile.raw, self.tile.later(done), self.floats, self.ints, self.weights,
                self.divisor, self.posts, self.limits, out, bad, norms,
            )  # fmt: skip
            loop(self.tile.first + done, n)
        return Made(whole, bad.tolist(), norms)


def case(of: Kind, data: str, generator: np.random.Generator) -> Case:
    tile = inputs(generator, data, of.codes, of.deltas)
    floats, ints = numbers(generator, of.kinds, tile)
    weights = generator.choice([1.0, 0.5, -0.25, 1.5, 0.0, 0.1], len(of.kinds))
    limited = of.combine in (ACTIVE_MEAN, SCALED_MEAN, CLIPPED)
    divisor = np.float32(generator.choice([0.75, 3.0]) if of.divided or limited else 0)
    posts = generator.choice([1.3, 0.0, -0.5, 1.0], of.posts)
    limits = generator.choice([0.25, 0.6, 3.0], (2, len(of.kinds)))
    return Case(
        of, tile, floats, ints, weights.astype(np.float32), divisor, posts.astype(np.float32),
        limits.astype(np.float32),
    )  # fmt: skip


def without_payload(out: NDArray[np.uint8], code: int) -> NDArray[np.uint8]:
    """Return stored entries with one NaN for all: which one a sum of two keeps is of no account."""
    if code in (BF16, F16):
        half = out.view(np.uint16).copy()
        infinite = 0x7F80 if code == BF16 else 0x7C00
        half[(half & 0x7FFF) > infinite] = 0x7FFF
        return half.view(np.uint8)
    wide = out.view(np.float32 if code == F32 else np.float64).copy()
    wide[np.isnan(wide)] = np.nan
    return wide.view(np.uint8)


def same(left: Made, right: Made, code: int) -> bool:
    """Return whether two loops have left the same bytes and counts."""
    a, b = (without_payload(made.out, code) for made in (left, right))
    return left.bad == right.bad and bool((a == b).all())


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", KINDS)
def test_a_loop_writes_and_counts_what_the_general_kernel_does(name: str, data: str) -> None:
    for seed in range(16):
        made = case(KINDS[name], data, np.random.default_rng(seed))
        wanted, got = made.by_general_kernel(), made.by_loop()
        assert same(got, wanted, made.kind.out_code), (seed, got.bad, wanted.bad)
        if data in ("calm", "large"):
            assert np.allclose(got.norms, wanted.norms, rtol=1e-4), seed


@pytest.mark.parametrize("tile", [64, 1000, PIECE, PIECE + 8])
@pytest.mark.parametrize("name", ["ties", "three transforms", "weights"])
def test_tiles_of_any_size_make_up_the_whole(name: str, tile: int) -> None:
    for seed in range(4):
        made = case(KINDS[name], "rarely_broken", np.random.default_rng(seed))
        assert same(made.by_loop(tile), made.by_general_kernel(), made.kind.out_code), seed


@pytest.mark.parametrize("name", KINDS)
def test_the_cases_are_no_trivial_ones(name: str) -> None:
    """Finite data is counted nowhere, and the output differs from entry to entry."""
    seen = set()
    for seed in range(16):
        made = case(KINDS[name], "calm", np.random.default_rng(seed)).by_loop()
        assert set(made.bad) == {BAD}
        width = WIDTHS[KINDS[name].out_code]
        seen |= set(made.out.reshape(-1, width)[:-64].view(f"u{width}").ravel().tolist())
    assert len(seen) > 30


@pytest.mark.parametrize(("until", "kept"), [(0, 0), (1003, 3), (1005, 5), (1 << 40, 5)])
def test_ties_are_kept_up_to_a_flat_index_of_the_tensor(until: int, kept: int) -> None:
    tile = Inputs(
        np.array([1, 2, 2, -2, 2, 2], np.float32).view(np.uint8)[4:].copy(),
        np.zeros(2, np.int64), np.array([NO, F32]), np.array([0, 1]), 1000, 5,
    )  # fmt: skip
    of = KINDS["one cut"]
    ints = np.array([[[0x40000000, until, 0, 0, 0, 0]]], np.int64)
    ones = np.ones((1, 1), np.float32)
    made = Case(of, tile, ones, ints, ones[0], np.float32(0), np.zeros(0, np.float32)).by_loop()
    wanted = [2.0, 2.0, -2.0, 2.0, 2.0][:kept] + [0.0] * (5 - kept)
    assert made.out[:20].view(np.float32).tolist() == wanted


def test_what_is_not_finite_is_counted_exactly() -> None:
    """One NaN among 20,000 entries of one expert, and an overflow elsewhere."""
    of = KINDS["ties by count, summed"]
    count = 20_000
    base, half, single = (np.zeros(count, d) for d in (np.uint16, np.float16, np.float32))
    single[[5, 19_000]] = np.nan, np.inf
    half[[5, 77]] = -np.inf, 60_000
    single[77] = 60_000
    raw = np.concatenate([base.view(np.uint8), half.view(np.uint8), single.view(np.uint8)])
    at = np.array([0, 2 * count, 4 * count])
    tile = Inputs(raw, at, np.array(of.codes), np.zeros(3, np.int64), 0, count)
    zeros = np.zeros((2, 1, 6), np.int64)
    zeros[:, 0, 1] = 1 << 40
    ones, none = np.ones((2, 1), np.float32), np.zeros(0, np.float32)
    made = Case(of, tile, ones, zeros, ones[:, 0].copy(), np.float32(0), none)
    # NaN elects nobody, so that entry 5 is its one -inf; 60,000 twice is no fp16 number.
    assert made.by_loop().bad == [BAD, BAD + 1, BAD + 2, BAD + 3]
    assert made.by_general_kernel().bad == [BAD, BAD + 1, BAD + 2, BAD + 3]


@pytest.mark.parametrize("name", ["ties by count, summed", "weights"])
@pytest.mark.parametrize(("value", "bad"), [(65519.996, 0), (65520.0, 1), (-65520.0, 1)])
def test_the_least_magnitude_that_overflows_is_counted(name: str, value: float, bad: int) -> None:
    """One of 9,000 entries, and nothing else that calls for a closer look."""
    of = KINDS[name]
    values = np.zeros(9000, np.float32)
    values[8500] = value
    parts = [stored(np.zeros(9000, np.float32), code) for code in (BF16, F16)]
    raw = np.concatenate([*parts, stored(values, of.codes[-1])])
    at = np.array([0, 0, 18_000, 36_000][-len(of.codes) :])
    tile = Inputs(raw, at, np.array(of.codes), np.zeros(len(of.codes), np.int64), 0, 9000)
    experts = len(of.kinds)
    ints = np.zeros((experts, len(of.kinds[0]), 6), np.int64)
    floats, ones = np.ones(ints.shape[:2], np.float32), np.ones(experts, np.float32)
    made = Case(of, tile, floats, ints, ones, np.float32(of.divided), np.zeros(0, np.float32))
    wanted = [BAD] * len(of.codes) + [BAD + bad]
    assert made.by_loop().bad == made.by_general_kernel().bad == wanted


@pytest.mark.parametrize(
    ("of", "known"),
    [
        (kind((BF16,) * MOST_INPUTS), True),
        (kind((BF16,) * (MOST_INPUTS + 1)), False),
        (kind(B2, kinds=((CUT, BAND, DARE, IDENTITY),)), True),
        (kind(B3, kinds=((CUT,), (ROW_BAND,))), False),
        (kind(B2, weight_space=True), True),
        (kind(B2, kinds=((CUT,),), weight_space=True), False),
    ],
)
def test_for_which_kinds_a_loop_can_be_written(of: Kind, known: bool) -> None:
    assert of.is_known is known


def test_a_kind_has_one_kernel_and_another_one_another() -> None:
    of = KINDS["ties"]
    assert kernel_for(of) is kernel_for(replace(of))
    files = {kernel_for(each).file for each in KINDS.values()}
    assert len(files) == len(KINDS)
    for change in ({"zero_plus": False}, {"signed": True}, {"out_code": F32}, {"posts": 0}):
        assert kernel_for(replace(of, **change)).file != kernel_for(of).file
