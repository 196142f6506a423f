"""A tile of a low-rank delta against one rank after the other in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.kernels.lora import low_rank_tile
from tests.kernels.arrays import same


def one_after_the_other(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """Return scale * left @ right with the products of each rank added in order, in fp32."""
    total = torch.zeros(left.shape[0], right.shape[1])
    for k in range(left.shape[1]):
        total = total + left[:, k : k + 1] * right[k : k + 1]
    return total * torch.tensor(scale, dtype=torch.float32)


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 40),
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
    for first in range(0, rows * width, tile):
        count = min(tile, rows * width - first)
        part = out[first : first + count]
        low_rank_tile(left.numpy(), right.numpy(), np.float32(scale), first, count, part)
    assert same(out, one_after_the_other(left, right, scale))


def test_a_tile_of_a_matrix_of_more_than_2_to_the_31_entries(tmp_path: Path) -> None:
    rows, width = 3, 1 << 30
    left = np.array([[1.0], [2.0], [3.0]], np.float32)
    # Only the sizes are large: of the right factor's one row no more than the ends are stored.
    right = np.memmap(tmp_path / "right", np.float32, "w+", shape=(1, width))
    right[0, :4] = right[0, -4:] = 0.5
    out = np.empty(8, np.float32)
    low_rank_tile(left, right, np.float32(2), rows * width - 4, 4, out[:4])
    low_rank_tile(left, right, np.float32(2), 2 * width - 2, 4, out[4:])
    assert out.tolist() == [3, 3, 3, 3, 2, 2, 3, 3]
