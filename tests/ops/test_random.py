"""The counter-based generator against whole-number Python, and its statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.ops._random import draws, kept

LOW = 0xFFFFFFFF


def mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & LOW
    x ^= x >> 15
    x = x * 0x846CA68B & LOW
    return x ^ (x >> 16)


def draw(index: int, key: int) -> int:
    h = mix((index & LOW) + (key & LOW) & LOW)
    return mix(h ^ (key >> 32) ^ ((index >> 32) * 0x9E3779B9 & LOW))


@given(
    indices=st.lists(st.integers(0, 2**42), min_size=1, max_size=20),
    key=st.integers(0, 2**64 - 1),
)
def test_draws_are_those_of_the_definition(indices: list[int], key: int) -> None:
    got = draws(torch.tensor(indices), key).tolist()
    assert got == [draw(index, key) for index in indices]
    assert all(0 <= value < 2**32 for value in got)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("tensor", ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
def test_the_keep_rate_is_the_density(density: float, tensor: str) -> None:
    size = 1 << 20
    place = Place(name=tensor, size=size, key=random_key(0, "dare", "math", tensor))
    rate = float(kept(torch.empty(size), place, density).double().mean())
    assert abs(rate - density) < 5 * (density * (1 - density) / size) ** 0.5


def test_neighbours_and_experts_draw_independently() -> None:
    size = 1 << 18
    masks = [
        kept(torch.empty(size), Place(size=size, key=random_key(0, "dare", expert, "x")), 0.5)
        for expert in ("math", "code")
    ]
    both = float((masks[0] & masks[1]).double().mean())
    pairs = float((masks[0][1:] & masks[0][:-1]).double().mean())
    row_below = float((masks[0][4096:] & masks[0][:-4096]).double().mean())
    for share in (both, pairs, row_below):
        assert abs(share - 0.25) < 5 * (0.25 * 0.75 / size) ** 0.5


def test_extreme_densities() -> None:
    place = Place(size=4096, key=random_key(1, "dare", "a", "x"))
    assert kept(torch.empty(4096), place, 1.0).all()
    assert not kept(torch.empty(4096), place, 1e-12).any()


def test_a_tile_draws_what_the_whole_draws() -> None:
    whole = Place(size=1000, key=99)
    tile = Place(start=300, size=1000, key=99)
    mask = kept(torch.empty(10, 100), whole, 0.3)
    assert torch.equal(kept(torch.empty(2, 100), tile, 0.3), mask[3:5])
    assert torch.equal(kept(torch.empty(100, 10).t(), whole, 0.3), mask)
