"""Sums of whole tensors against the torch functions that fix their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergekit_lite.kernels.codec import CODES
from mergekit_lite.kernels.sums import SUM_BLOCK, gram_tile
from mergekit_lite.ops._statistics import add_blocks, totals
from tests.kernels.blocks import memory

SIZES = [1, 15, 16, 17, 31, 4079, 4080, 4095, 4096, 4097, 8191, 8192, 12_289, 20_000]


def summed(tensors: list[torch.Tensor], dtype: str, base: torch.Tensor | None, tile: int):  # type: ignore[no-untyped-def]
    """Return the inner products of expert tensors, tile by tile, and what was not finite."""
    every = [base if base is not None else tensors[0], *tensors]
    size, width = tensors[0].numel(), tensors[0].element_size()
    experts = len(tensors)
    codes = np.array([CODES[dtype]] * len(every), np.int64)
    if base is None:
        codes[0] = -1
    gram, bad = [], np.zeros(experts + 2, np.int64)
    for first in range(0, size, tile):
        n = min(tile, size - first)
        parts = [t[first : first + n].view(torch.uint8).numpy() for t in every]
        blocks = -(-n // SUM_BLOCK)
        gram.append(np.zeros((blocks, experts, experts)))
        at = np.arange(len(every), dtype=np.int64) * n * width
        gram_tile(
            np.concatenate(parts), at, codes, np.zeros(len(every), np.int64), base is None, bad,
            memory(experts)[0], n, gram[-1],
        )  # fmt: skip
    g = np.concatenate(gram)
    pairs = [(i, j) for i in range(experts) for j in range(i, experts)]
    return {(i, j): add_blocks(g[:, i, j].tolist()) for i, j in pairs}, bad


def tensors_of(size: int, count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return tensors whose entries span many magnitudes, so that every order gives other bits."""
    generator = torch.Generator().manual_seed(size)
    spread = torch.randn(count, size, generator=generator) * 10 ** (
        6 * torch.rand(count, size, generator=generator) - 3
    )
    return list(spread.to(dtype))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [SUM_BLOCK, 1 << 20])
def test_sums_are_those_of_the_specification(size: int, tile: int) -> None:
    tensors = tensors_of(size, 3, torch.float32)
    wanted = totals(tensors)
    gram, bad = summed(tensors, "F32", None, tile)
    assert all(value == wanted.gram[i][j] for (i, j), value in gram.items())
    assert not bad.any()


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_sums_of_deltas(name: str, dtype: torch.dtype) -> None:
    base, *experts = tensors_of(9000, 3, dtype)
    wanted = totals([expert.float() - base.float() for expert in experts])
    gram, _ = summed(experts, name, base, SUM_BLOCK)
    assert all(value == wanted.gram[i][j] for (i, j), value in gram.items())


def test_what_is_not_finite_is_counted_for_its_own_input() -> None:
    base, first, second = tensors_of(5000, 3, torch.float32)
    second[17], second[4500], base[3] = float("nan"), float("inf"), float("-inf")
    _, bad = summed([first, second], "F32", base, SUM_BLOCK)
    assert bad.tolist() == [1, 0, 2, 0]
