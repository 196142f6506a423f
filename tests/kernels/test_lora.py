"""A tile of a low-rank delta against one rank after the other in torch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.kernels.lora import COLUMNS, ROWS, low_rank_tile, strips
from tests.kernels.arrays import same


def one_after_the_other(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Return scale * left @ right with the products of each rank added in order, in fp32."""
    total = torch.zeros(left.shape[0], right.shape[1])
    for k in range(left.shape[1]):
        total = total + left[:, k : k + 1] * right[k : k + 1]
    return total * torch.tensor(scale, dtype=torch.float32)


@settings(max_examples=100)
@given(
    st.integers(1, 9),
    st.one_of(st.integers(1, 9), st.integers(COLUMNS - 1, 2 * ROWS * COLUMNS + 1)),
    st.integers(1, 19),
    st.one_of(st.integers(1, 40), st.integers(COLUMNS, 24 * COLUMNS)),
    st.floats(-4, 4, width=32),
    st.integers(0, 1000),
)
def test_tiles_of_any_size_make_up_the_whole(
    rows: int, width: int, rank: int, tile: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, rank, generator=generator)
    right = torch.randn(rank, width, generator=generator)
    out = np.full(rows * width, 9, np.float32)
    factors = left.numpy(), strips(right.numpy())
    for first in range(0, rows * width, tile):
        count = min(tile, rows * width - first)
        part = out[first : first + count]
        low_rank_tile(*factors, np.float32(scale), width, first, count, part)
    assert same(out, one_after_the_other(left, right, scale))


def test_a_tile_of_a_matrix_of_more_than_2_to_the_31_entries() -> None:
    rows, width = (1 << 21) + 1, 1024
    left = np.zeros((rows, 1), np.float32)
    left[-1] = 3
    right = strips(np.full((1, width), 0.5, np.float32))
    out = np.empty(8, np.float32)
    low_rank_tile(left, right, np.float32(2), width, (rows - 1) * width - 4, 8, out)
    assert out.tolist() == [0, 0, 0, 0, 3, 3, 3, 3]
