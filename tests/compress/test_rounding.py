"""Codes without gaps, levels that hold zero, and rounding against what a layer sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.compress.codecs.delta_come import ranks
from mergekit_lite.compress.codecs.ultradelta import _decide
from mergekit_lite.compress.grouped import rounded_by_gram, rounded_to_nearest
from mergekit_lite.compress.packing import pack, packed_bytes, unpack
from mergekit_lite.compress.rounding import rounded
from tests.compress.test_codecs import decoded, encoded, noise


@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=60), st.integers(0, 20))
def test_codes_come_back_from_any_bit(bits: int, numbers: list[int], skip: int) -> None:
    codes = np.array(numbers, np.uint8) & np.uint8((1 << bits) - 1)
    raw = pack(codes, bits)
    assert raw.size == packed_bytes(codes.size, bits)
    assert np.array_equal(unpack(raw, bits, codes.size), codes)
    skip = min(skip, codes.size)
    assert np.array_equal(unpack(raw, bits, codes.size - skip, skip * bits), codes[skip:])


def test_codes_lie_from_the_lowest_bit_on() -> None:
    assert pack(np.array([1, 2, 3, 4, 5], np.uint8), 3).tolist() == [0b11010001, 0b01011000]
    assert pack(np.array([1, 0, 1], np.uint8), 1).tolist() == [0b101]


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40),
    st.sampled_from([2, 3, 4, 8]),
)
def test_levels_hold_zero_and_miss_half_a_step(numbers: list[float], bits: int) -> None:
    values = np.array(numbers, np.float32)
    found = rounded(values, bits)
    assert 0 <= found.zero < 1 << bits
    back = (found.codes.astype(np.float64) - found.zero) * found.scale
    assert (back[values == 0] == 0).all()
    # Shifting the levels, so that zero is one, may cost half a step more at an end.
    assert np.abs(back - values).max() <= found.scale * 1.001


def test_rounding_by_gram_misses_less_of_the_outputs() -> None:
    """The mean square of what outputs miss is tr(E G E^T)."""
    inputs = torch.from_numpy(noise((400, 3), 1) @ noise((3, 24), 2) * 1e4 + noise((400, 24), 3))
    gram = inputs.T @ inputs / 400
    matrix = noise((10, 24), 4)
    missed = []
    for grid in (
        rounded_to_nearest(matrix, 2, 8),
        rounded_by_gram(matrix, 2, 8, gram, 0.01),
    ):
        gap = torch.from_numpy(grid.values() - matrix).double()
        missed.append(float((gap @ gram.double() * gap).sum()))
    assert missed[1] < 0.7 * missed[0]


def test_rounding_by_a_plain_gram_is_to_nearest() -> None:
    matrix = noise((7, 13), 5)
    plain, other = (
        rounded_to_nearest(matrix, 3, 4),
        rounded_by_gram(matrix, 3, 4, torch.eye(13), 0.01),
    )
    assert np.array_equal(plain.codes, other.codes)


def test_inputs_that_nothing_was_seen_of() -> None:
    gram = torch.zeros(6, 6)
    gram[0, 0] = 2.0
    found = rounded_by_gram(noise((4, 6)), 3, 6, gram, 0.01)
    assert np.isfinite(found.values()).all()


def test_bands_of_the_paper() -> None:
    """Llama-7B: 968 directions of 2 bits in attention, just the budget; 1428 of 1436 in the MLP."""
    assert ranks((4096, 4096), 16) == [(8, 2), (3, 32), (2, 968)]
    bits, rank = ranks((11008, 4096), 16)[-1]
    assert bits == 2
    assert 1428 <= rank <= 1436
    assert ranks((8, 400), 1) == [(8, 2), (3, 6)]
    assert ranks((3, 3), 16) == []


def test_ultradelta_keeps_a_part_of_every_level() -> None:
    values = noise((200, 100), 6)
    found = encoded("ultradelta", values, keep=0.25, bits=3, gamma=1.0)
    assert found is not None
    got = decoded(found, values.shape)
    levels = rounded(values.reshape(-1), 3)
    step = np.float32(levels.scale / 0.25)
    for level in range(8):
        if level == levels.zero:
            continue
        there = levels.codes == level
        kept = got[there] != 0
        assert abs(kept.sum() - 0.25 * there.sum()) <= 1
        assert got[there][kept] == pytest.approx((level - levels.zero) * step, rel=1e-5)
    other = encoded("ultradelta", values, keep=0.25, bits=3, gamma=1.0, seed=1)
    assert other is not None
    assert not np.array_equal(got, decoded(other, values.shape))


def test_ultradelta_gives_more_to_what_varies_more() -> None:
    found = {f"w{n}": {"variance": float(n), "trace": 10.0 - n} for n in range(7)}
    decided = _decide(found, {"keep": 0.1, "spread": 0.04, "gamma": 0.5})
    parts = [round(decided[f"w{n}"]["keep"], 6) for n in range(7)]
    assert parts == [0.06, 0.06, 0.06, 0.1, 0.1, 0.14, 0.14]
    assert [decided[f"w{n}"]["factor"] for n in (0, 3, 6)] == [0.5, 0.75, 1.0]


def test_lowrank_sparse_is_better_than_either() -> None:
    values = noise((60, 4), 1) @ noise((4, 50), 2) * 1e3
    values.reshape(-1)[::97] += 0.05
    missed = {}
    for method, params in (
        ("lowrank_sparse", {"rank": 4, "keep": 0.02}),
        ("svd", {"rank": 4}),
        ("topk_sparse", {"keep": 0.2}),
    ):
        found = encoded(method, values, **params)
        assert found is not None
        missed[method] = np.linalg.norm(decoded(found, values.shape) - values.reshape(-1))
    assert missed["lowrank_sparse"] < 0.1 * min(missed["svd"], missed["topk_sparse"])


def test_scales_of_signs_by_gram() -> None:
    """Of inputs that are all in the first column, that column alone decides."""
    values = np.array([[3.0, -1.0], [5.0, 7.0]], np.float32)
    gram = np.array([[2.0, 0.0], [0.0, 0.0]], np.float32)
    for scales, wanted in (("row", [[3.0], [5.0]]), ("tensor", [[4.0]])):
        found = encoded("bitdelta", values, gram, scales=scales)
        assert found is not None
        assert found.parts["scales"].tolist() == wanted
    found = encoded("bitdelta", values, np.zeros((2, 2), np.float32), scales="row")
    assert found is not None
    assert found.parts["scales"].tolist() == [[2.0], [6.0]]
