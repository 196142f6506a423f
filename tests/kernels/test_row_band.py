"""The band of magnitudes in a row against its torch op, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.kernels.row_band import band_rows
from mergekit_lite.kernels.row_keys import row_scratch
from mergekit_lite.ops._place import Place
from mergekit_lite.ops.transform.breadcrumbs import band
from tests.kernels.arrays import Floats, awkward, same
from tests.kernels.rows import awkward as mixed
from tests.kernels.rows import calm, differences, huge
from tests.kernels.test_steps import CALM, by_op


@CALM
@given(awkward(1, 12), st.integers(1, 4), st.floats(0.01, 1), st.floats(0, 0.9), st.integers(0, 99))
def test_band_rows_is_breadcrumbs_row_by_row(
    row: list[float], rows: int, density: float, gamma: float, seed: int
) -> None:
    width = len(row)
    generator = np.random.default_rng(seed)
    x = np.stack([generator.permutation(np.array(row, np.float32)) for _ in range(rows)])
    params = {"density": density, "gamma": gamma, "unit": "row"}
    wanted = by_op("breadcrumbs", x, Place(size=x.size), **params)
    top, last = band(density, gamma, width)
    flat = x.reshape(-1)
    if density < 1:
        band_rows(
            flat, len(flat), width, top, last - top,
            np.full(row_scratch(width), 7, np.int64),
        )  # fmt: skip
    assert same(flat, wanted)


def test_band_rows_of_a_long_row_with_one_magnitude() -> None:
    """Ties alone: the band is one run of entries, cut by position."""
    signs = np.random.default_rng(0).choice([-0.25, 0.25], 5000).astype(np.float32)
    x: Floats = signs.copy()
    band_rows(x, 5000, 5000, 10, 90, np.full(row_scratch(5000), 7, np.int64))
    wanted = signs.copy()
    wanted[:10] = 0
    wanted[100:] = 0
    assert same(x, wanted)


def continuous(generator: np.random.Generator, n: int) -> Floats:
    """Return entries of which no two are the same."""
    return generator.standard_t(4, n).astype(np.float32)


ROWS = {f.__name__: f for f in (calm, mixed, huge, differences, continuous)}


@pytest.mark.parametrize("width", [65, 1000, 4097])
@pytest.mark.parametrize("data", ROWS)
def test_bands_of_long_rows(data: str, width: int) -> None:
    for seed in range(6):
        generator = np.random.default_rng(seed)
        x = ROWS[data](generator, 2 * width).reshape(2, width)
        density, gamma = generator.uniform(0.01, 0.9), generator.uniform(0, 0.3)
        params = {"density": density, "gamma": gamma, "unit": "row"}
        wanted = by_op("breadcrumbs", x, Place(size=x.size), **params)
        top, last = band(density, gamma, width)
        flat, scratch = x.reshape(-1), np.full(row_scratch(width) + 1, 7, np.int64)
        band_rows(flat, len(flat), width, top, last - top, scratch[:-1])
        assert same(flat, wanted), seed
        assert scratch[-1] == 7
