"""Transforms on a block against the torch ops of the same name, bit for bit."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.kernels.steps import drop_random, drop_top, keep_far, keep_top
from mergekit_lite.ops import get
from mergekit_lite.ops._arithmetic import single
from mergekit_lite.ops._place import Cut, Place
from mergekit_lite.ops._random import kept
from mergekit_lite.ops._statistics import EVERY, order_cuts, totals
from mergekit_lite.ops.transform.breadcrumbs import band
from mergekit_lite.ops.transform.dare import rescale_factor
from mergekit_lite.ops.transform.deviation import bounds
from tests.kernels.arrays import Floats, awkward, same

CALM = settings(max_examples=200)


def bits_of(cut: Cut) -> np.uint32:
    return np.float32(cut.threshold).view(np.uint32)


def in_blocks(kernel, values: Floats, cut: Cut, block: int) -> Floats:  # type: ignore[no-untyped-def]
    """Apply a cut block by block, as the fused loop does."""
    out = values.copy()
    for first in range(0, len(out), block):
        part = out[first : first + block]
        kernel(part, len(part), first, bits_of(cut), cut.until)
    return out


def by_op(op: str, values: Floats, place: Place, **arguments: object) -> torch.Tensor:
    spec = get(op)
    given_ = {**spec.defaults(), **arguments}
    specials = {"cut": given_.pop("cut", ()), "place": place, "sums": None}
    chosen = {name: value for name, value in specials.items() if name in spec.specials}
    tensor = torch.from_numpy(values.copy())
    return spec.function(tensor, **chosen, **spec.arguments(given_))


@CALM
@given(awkward(), st.floats(0.01, 0.99), st.integers(1, 50), st.booleans())
def test_keep_top_is_magnitude(
    values: list[float], density: float, block: int, every: bool
) -> None:
    x = np.array(values, np.float32)
    tensor = torch.from_numpy(x)
    cut = order_cuts(tensor, [max(1, int(density * len(x)))], keep_ties=every)
    wanted = by_op("magnitude", x, Place(size=len(x)), cut=cut, density=density)
    assert same(in_blocks(keep_top, x, cut[0], block), wanted)


@CALM
@given(awkward(), st.floats(0.01, 0.99), st.floats(0, 0.9), st.integers(1, 50))
def test_drop_top_then_keep_top_is_breadcrumbs(
    values: list[float], density: float, gamma: float, block: int
) -> None:
    x = np.array(values, np.float32)
    cuts = order_cuts(torch.from_numpy(x), band(density, gamma, len(x)))
    params = {"density": density, "gamma": gamma, "unit": "tensor"}
    wanted = by_op("breadcrumbs", x, Place(size=len(x)), cut=cuts, **params)
    dropped = in_blocks(drop_top, x, cuts[0], block)
    assert same(in_blocks(keep_top, dropped, cuts[1], block), wanted)


@CALM
@given(awkward(), st.sampled_from([0.0, 0.5, 1.28, 3.0]))
def test_keep_far_is_deviation(values: list[float], factor: float) -> None:
    x = np.array(values, np.float32)
    ones = torch.ones(len(x))
    sums = totals([torch.from_numpy(x), ones], plain=True)
    params = {"factor": factor, "spare_1d": False}
    wanted = get("deviation").function(torch.from_numpy(x.copy()), sums=sums, **params)
    mean, spread = bounds(sums)
    far = x.copy()
    keep_far(far, len(x), np.float32(single(mean)), np.float32(single(factor * spread)))
    assert same(far, wanted)


def test_a_cut_of_no_entries_keeps_none_and_drops_none() -> None:
    x = np.array([1.0, np.inf, 0.0, -3.0], np.float32)
    nothing = Cut(float("inf"), 0)
    # Infinity itself is no larger than infinity, and lies behind `until`.
    assert same(in_blocks(keep_top, x, nothing, 4), np.zeros(4, np.float32))
    assert same(in_blocks(drop_top, x, nothing, 4), x)


def test_a_cut_that_keeps_all_ties_reaches_past_any_index() -> None:
    x = np.array([2.0, -2.0, 1.0, 2.0], np.float32)
    out = x.copy()
    keep_top(out, 4, 1 << 40, bits_of(Cut(2.0, EVERY)), EVERY)
    assert out.tolist() == [2.0, -2.0, 0.0, 2.0]


@CALM
@given(
    awkward(),
    st.integers(0, (1 << 64) - 1),
    st.one_of(st.floats(0.001, 1), st.sampled_from([1.0, 0.5, 2**-32])),
    st.one_of(st.integers(0, 100), st.integers((1 << 32) - 45, (1 << 32) + 5), st.just(7 << 32)),
    st.sampled_from(["inv_density", "none"]),
)
def test_drop_random_is_dare_wherever_the_tile_begins(
    values: list[float], key: int, density: float, first: int, rescale: str
) -> None:
    x = np.array(values, np.float32)
    place = Place(start=first, size=1 << 40, key=key)
    with np.errstate(over="ignore"):
        wanted = by_op("dare", x, place, density=density, rescale=rescale)
    factor = np.float32(rescale_factor(density, rescale, None))
    keep = round(density * 2**32)
    drop_random(x, len(x), first, key & 0xFFFFFFFF, key >> 32, keep, factor)
    assert same(x, wanted)


def test_the_mask_changes_where_the_index_passes_32_bits() -> None:
    """An index is 64 bits wide: entry 2**32 + i draws anew, and not what entry i drew."""
    key, n, first = 0x123456789ABCDEF, 4096, (1 << 32) - 1000
    x = np.ones(n, np.float32)
    half = 1 << 31
    drop_random(x, n, first, key & 0xFFFFFFFF, key >> 32, half, np.float32(1))
    wanted = kept(torch.ones(n), Place(start=first, key=key), 0.5)
    assert np.array_equal(x != 0, wanted.numpy())
    wrapped = kept(torch.ones(n - 1000), Place(start=0, key=key), 0.5).numpy()
    assert (wrapped != (x[1000:] != 0)).mean() > 0.4
