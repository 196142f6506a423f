"""Decoding and rounding against torch, on every 16-bit pattern and on the edges of fp32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mergekit_lite.kernels.codec import CODES, decode, encode
from tests.kernels.arrays import same

DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
HALVES = ("BF16", "F16")
EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)
INF = 0x7F800000


def from_torch(raw: NDArray[np.uint8], dtype: str) -> torch.Tensor:
    return torch.from_numpy(raw.copy()).view(DTYPES[dtype])


def decoded(raw: NDArray[np.uint8], dtype: str) -> tuple[NDArray[np.float32], int]:
    n = raw.nbytes // DTYPES[dtype].itemsize
    out = np.full(n, 7, np.float32)
    return out, decode(raw, 0, CODES[dtype], out, n)


def encoded(values: NDArray[np.float32], dtype: str) -> tuple[torch.Tensor, int]:
    raw = np.full(len(values) * DTYPES[dtype].itemsize, 7, np.uint8)
    bad = encode(values, len(values), raw, 0, CODES[dtype])
    return from_torch(raw, dtype), bad


def around(magnitudes: list[int]) -> NDArray[np.float32]:
    """Return fp32 numbers next to each of some bit patterns, with both signs."""
    bits = np.array([m + step for m in magnitudes for step in (-1, 0, 1)], np.uint32)
    return np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)


def random_bits(count: int, seed: int) -> NDArray[np.float32]:
    """Return fp32 numbers of every exponent, infinities, NaN and subnormals included."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 1 << 32, count, np.uint64).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_pattern_is_decoded_as_torch_does(dtype: str) -> None:
    got, bad = decoded(EVERY_HALF.view(np.uint8), dtype)
    wanted = from_torch(EVERY_HALF.view(np.uint8), dtype).float()
    assert same(got, wanted)
    assert bad == int((~torch.isfinite(wanted)).sum())


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_pattern_survives_the_way_there_and_back(dtype: str) -> None:
    values, _ = decoded(EVERY_HALF.view(np.uint8), dtype)
    back, _ = encoded(values, dtype)
    number = ~np.isnan(values)
    assert np.array_equal(
        back.view(torch.int16).numpy().view(np.uint16)[number], EVERY_HALF[number]
    )
    assert bool(back.isnan().numpy()[~number].all())


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wide_dtypes_are_decoded_as_torch_does(dtype: str) -> None:
    stored = torch.from_numpy(random_bits(5000, 1)).to(DTYPES[dtype])
    if dtype == "F64":
        edges = [1e300, -1e300, 1e-300, 1 + 2**-24, 1 + 3 * 2**-24, 3.4028236e38]
        stored = torch.cat([stored, torch.tensor(edges, dtype=torch.float64)])
    got, bad = decoded(stored.view(torch.uint8).numpy(), dtype)
    assert same(got, stored.float())
    assert bad == int((~torch.isfinite(stored.float())).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_patterns_are_rounded_as_torch_does(dtype: str) -> None:
    values = random_bits(200_000, 2)
    got, bad = encoded(values, dtype)
    wanted = torch.from_numpy(values).to(DTYPES[dtype])
    assert same(got.float(), wanted.float())
    assert bad == int((~torch.isfinite(wanted)).sum())


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_between_two_neighbours_go_to_the_even_one(dtype: str) -> None:
    """Every boundary between two 16-bit numbers, one fp32 step below it and one above."""
    finite = EVERY_HALF[: 1 << 15].view(np.uint8)
    edges = from_torch(finite, dtype).double()
    edges = edges[torch.isfinite(edges)]
    middles = ((edges[1:] + edges[:-1]) / 2).float().numpy()
    values = np.unique(around(middles.view(np.uint32)[1:].tolist()).view(np.uint32))
    values = values.view(np.float32)
    got, _ = encoded(values, dtype)
    assert same(got.float(), torch.from_numpy(values).to(DTYPES[dtype]).float())


@pytest.mark.parametrize(
    ("dtype", "largest"), [("BF16", 0x7F7F8000), ("F16", 0x477FF000), ("F32", INF), ("F64", INF)]
)
def test_what_overflows_is_counted_and_what_just_fits_is_not(dtype: str, largest: int) -> None:
    fits = np.array([largest - 1, (largest - 1) | (1 << 31), 0, 1], np.uint32).view(np.float32)
    got, bad = encoded(fits, dtype)
    assert bad == 0
    assert bool(torch.isfinite(got).all())
    not_ = np.array([largest, largest | (1 << 31), INF, 0x7FC00000, 0xFF800001], np.uint32)
    got, bad = encoded(not_.view(np.float32), dtype)
    assert bad == 5
    assert got.float().tolist()[:3] == [np.inf, -np.inf, np.inf]
    assert bool(got[3:].isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_asked_for_entries_are_read_and_written(dtype: str) -> None:
    width = DTYPES[dtype].itemsize
    stored = torch.arange(12).to(DTYPES[dtype])
    out = np.full(12, -5, np.float32)
    decode(stored.view(torch.uint8).numpy(), 3 * width, CODES[dtype], out, 4)
    assert out.tolist() == [3, 4, 5, 6] + [-5] * 8
    raw = np.zeros(12 * width, np.uint8)
    encode(out, 4, raw, 2 * width, CODES[dtype])
    assert from_torch(raw, dtype).tolist() == [0, 0, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0]
