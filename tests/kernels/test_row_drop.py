"""The drop by rank in a row against its torch op, bit for bit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.kernels.row_drop import drop_rows, is_kept, place_by_rank
from mergekit_lite.kernels.row_keys import keys_in, row_scratch
from mergekit_lite.ops._place import Place
from tests.kernels.arrays import Floats, awkward, same
from tests.kernels.rows import DATA, differences
from tests.kernels.test_steps import CALM, by_op

KEY = 0x123456789ABCDEF


def dropped(x: Floats, width: int, first: int, density: float, epsilon: float, how: str) -> Floats:
    ends = (density - epsilon, 2.0 * epsilon) if width > 1 else (density, 0.0)
    flat = x.reshape(-1).copy()
    scratch = np.full(row_scratch(width), 7, np.int64)
    divided = how == "inv_prob"
    drop_rows(
        flat, len(flat), first, width, KEY & 0xFFFFFFFF, KEY >> 32, *ends, divided,
        np.float32(1), scratch,
    )  # fmt: skip
    return flat


@pytest.mark.parametrize("how", ["inv_prob", "none"])
@CALM
@given(awkward(1, 12), st.integers(1, 4), st.floats(0.05, 0.45), st.integers(0, 99))
def test_drop_rows_is_magprune_row_by_row(
    how: str, row: list[float], rows: int, epsilon: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    x = np.stack([generator.permutation(np.array(row, np.float32)) for _ in range(rows)])
    place = Place(size=x.size, key=KEY)
    wanted = by_op("magprune", x, place, density=0.5, epsilon=epsilon, rescale=how)
    assert same(dropped(x, x.shape[1], 0, 0.5, epsilon, how), wanted)


def test_a_row_across_the_end_of_32_bits() -> None:
    x = np.random.default_rng(1).standard_normal((3, 700)).astype(np.float32)
    first = (1 << 32) - 1000
    place = Place(start=first, size=x.size, key=KEY)
    wanted = by_op("magprune", x, place, density=0.6, epsilon=0.2, rescale="inv_prob")
    assert same(dropped(x, 700, first, 0.6, 0.2, "inv_prob"), wanted)


def test_long_rows_of_few_magnitudes_are_ranked_by_position() -> None:
    x = np.random.default_rng(2).choice([-0.25, 0.25, 0.5], (2, 5000)).astype(np.float32)
    place = Place(size=x.size, key=KEY)
    wanted = by_op("magprune", x, place, density=0.5, epsilon=0.4, rescale="inv_prob")
    assert same(dropped(x, 5000, 0, 0.5, 0.4, "inv_prob"), wanted)


WIDTHS = [1, 2, 63, 64, 65, 513, 4097, 14_336]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("data", DATA)
def test_ranks_are_those_of_a_stable_sort(data: str, width: int) -> None:
    for seed in range(4):
        values = DATA[data](np.random.default_rng(seed), width)
        assert_ranked(values)


def test_rows_of_16_bit_models_are_ranked_by_counting() -> None:
    """Most keys are exact; some hold several magnitudes, which are ordered among themselves."""
    for seed in range(8):
        values = differences(np.random.default_rng(seed), 8192)
        assert_ranked(values)
        assert_ranked(values * np.float32(2**-100))


def test_one_tiny_or_huge_entry_leaves_the_others_few_keys() -> None:
    values = differences(np.random.default_rng(5), 3000)
    for odd in (1e-45, 3e38, np.inf):
        values[1234] = odd
        assert_ranked(values)


def assert_ranked(values: Floats) -> None:
    width = len(values)
    scratch = np.full(row_scratch(width) + 1, -3, np.int64)
    before = values.copy()
    place_by_rank(values.view(np.uint32), np.arange(width, dtype=np.uint32), scratch[:-1])
    magnitudes = before.view(np.uint32) & np.uint32(0x7FFFFFFF)
    wanted = np.empty(width, np.int64)
    wanted[np.argsort(magnitudes, kind="stable")] = np.arange(width)
    assert np.array_equal(keys_in(scratch[:-1], width), wanted)
    assert scratch[-1] == -3
    assert np.array_equal(values.view(np.uint32), before.view(np.uint32))


@CALM
@given(
    st.one_of(st.floats(2**-149, 1, width=32), st.floats(2**-34, 2**-6, width=32)),
    st.integers(-2, 2),
    st.integers(0, (1 << 32) - 1),
)
def test_an_entry_is_kept_below_its_chance(chance: float, off: int, draw: int) -> None:
    near = min(max(int(chance * 2**32) + off, 0), (1 << 32) - 1)
    for number in (draw, near):
        kept = is_kept(np.uint32(number), np.float32(chance))
        assert bool(kept) == (Fraction(number) < Fraction(chance) * 2**32)


def test_a_table_of_chances_is_made_anew_for_others() -> None:
    """Experts share the memory of a worker's row."""
    x = np.random.default_rng(3).standard_normal((4, 300)).astype(np.float32)
    scratch = np.zeros(row_scratch(300), np.int64)
    place = Place(size=x.size, key=KEY)
    for density, epsilon in [(0.5, 0.2), (0.5, 0.1), (0.6, 0.1), (0.6, 0.1)]:
        flat = x.reshape(-1).copy()
        ends = density - epsilon, 2.0 * epsilon
        drop_rows(
            flat,
            len(flat),
            0,
            300,
            KEY & 0xFFFFFFFF,
            KEY >> 32,
            *ends,
            True,
            np.float32(1),
            scratch,
        )
        wanted = by_op("magprune", x, place, density=density, epsilon=epsilon)
        assert same(flat, wanted)
