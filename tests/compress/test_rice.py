"""The Golomb-Rice coder: its size, its blocks and what it makes of damaged bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.compress import Encoded, scheme_named
from mergekit_lite.compress._types import in_memory
from mergekit_lite.compress.schemes.rice import bits_for, encoded
from mergekit_lite.compress.survey import largest
from mergekit_lite.errors import DataError
from mergekit_lite.kernels.rice import BLOCK


def through(values: np.ndarray, kept: int, *, signs: bool = True, tile: int = 0) -> np.ndarray:
    found = largest(values, kept)
    scale = 1.0
    coded = encoded(values, found.threshold, found.kept, found.ties, scale=scale, signs=signs)
    return read(coded, values.size, tile)


def read(coded: Encoded, size: int, tile: int = 0) -> np.ndarray:
    packed, fetch = in_memory(coded, "w", (size,))
    decoder = scheme_named("rice").decoder(packed, fetch)
    out = np.full(size, 7, np.float32)
    for first in range(0, size, tile or size):
        decoder.fill(first, out[first : first + (tile or size)])
    return out


@settings(max_examples=60)
@given(
    size=st.sampled_from([1, 8, 100, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5]),
    share=st.floats(1e-5, 1),
    lumpy=st.booleans(),
    signs=st.booleans(),
    tile=st.sampled_from([0, 1000, BLOCK, BLOCK + 3]),
    seed=st.integers(0, 100),
)
def test_kept_entries_come_back(
    size: int, share: float, lumpy: bool, signs: bool, tile: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=size).astype(np.float32)
    if lumpy:  # all in one place, so that other blocks have long gaps or none at all
        values[size // 3 :] *= 1e-3
    kept = max(int(share * size), 1)
    order = np.argsort(-np.abs(values), kind="stable")[:kept]
    wanted = np.zeros(size, np.float32)
    wanted[order] = np.sign(values[order]) if signs else values[order].astype(np.float16)
    assert np.array_equal(through(values, kept, signs=signs, tile=tile), wanted)


@pytest.mark.parametrize(
    ("keep", "bits", "each"), [(0.05, 4, 0.339), (0.1, 3, 0.576), (0.2, 2, 0.939),
                               (0.3, 1, 1.188), (0.5, 0, 1.5)],
)  # fmt: skip
def test_size_is_that_of_the_paper(keep: float, bits: int, each: float) -> None:
    assert bits_for(keep) == bits
    size = 1 << 20
    values = np.random.default_rng(1).normal(size=size).astype(np.float32)
    found = largest(values, int(keep * size))
    coded = encoded(values, found.threshold, found.kept, found.ties, scale=1.0, signs=True)
    nbytes = sum(part.nbytes for part in coded.parts.values())
    assert each * 0.99 < 8 * nbytes / size < each * 1.01


@pytest.mark.parametrize(("size", "kept"), [(1, 1), (7, 3), (BLOCK + 11, 3000), (BLOCK, BLOCK)])
def test_what_is_missed_is_known_without_decoding(size: int, kept: int) -> None:
    values = np.random.default_rng(3).normal(size=size).astype(np.float32)
    found = largest(values, kept)
    squares = float((values.astype(np.float64) ** 2).sum())
    coded = encoded(
        values, found.threshold, found.kept, found.ties, scale=1.3, signs=True, squares=squares
    )
    gap = values.astype(np.float64) - read(coded, size)
    assert coded.missed == pytest.approx((gap**2).sum(), rel=1e-9)


def test_bits_for_the_extremes() -> None:
    assert bits_for(1.0) == 0
    assert bits_for(0.999) == 0
    assert bits_for(1e-9) == 16


@settings(max_examples=150)
@given(seed=st.integers(0, 10_000), signs=st.booleans(), bits=st.integers(0, 16))
def test_damaged_codes_stay_inside_memory(seed: int, signs: bool, bits: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=BLOCK + 900).astype(np.float32)
    found = largest(values, 3000)
    coded = encoded(values, found.threshold, found.kept, found.ties, scale=1.0, signs=signs)
    codes = coded.parts["codes"].copy()
    for _ in range(random.integers(1, 50)):
        codes[random.integers(0, len(codes))] = random.integers(0, 256)
    harmed = Encoded("rice", {**coded.parts, "codes": codes}, {**coded.numbers, "bits": bits})
    try:
        out = read(harmed, values.size)
    except DataError:
        return
    assert np.isfinite(out).all()


def test_an_index_that_does_not_fit_is_refused() -> None:
    values = np.random.default_rng(0).normal(size=2 * BLOCK).astype(np.float32)
    found = largest(values, 4000)
    coded = encoded(values, found.threshold, found.kept, found.ties, scale=1.0, signs=True)
    index = coded.parts["index"].copy()
    index[0] += 500  # more kept entries than the block has codes for
    index[2] -= 500
    with pytest.raises(DataError, match="beyond their block"):
        read(Encoded("rice", {**coded.parts, "index": index}, coded.numbers), values.size)


def test_the_bound_of_entropy_is_near() -> None:
    keep, size = 0.05, 1 << 20
    values = np.random.default_rng(2).normal(size=size).astype(np.float32)
    found = largest(values, int(keep * size))
    coded = encoded(values, found.threshold, found.kept, found.ties, scale=1.0, signs=True)
    entropy = -(1 - keep) * math.log2(1 - keep) - keep * math.log2(keep / 2)
    assert 8 * coded.parts["codes"].nbytes / size < 1.02 * entropy
