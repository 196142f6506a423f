"""Ranks and sums against the plainest possible Python."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.ops._place import Cut
from mergekit_lite.ops._statistics import (
    BLOCK,
    EVERY,
    LANES,
    Order,
    add_blocks,
    block_sums,
    model_cuts,
    order_cuts,
    totals,
)

ENTRIES = st.lists(
    st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-42]), st.floats(width=32)),
    max_size=40,
).map(lambda found: [0.0 if math.isnan(x) else x for x in found])


def largest(values: list[float], k: int) -> set[int]:
    """Indices of the k largest magnitudes, the first of a tie first."""
    return set(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k])


@given(values=ENTRIES, rank=st.integers(0, 45))
def test_a_cut_keeps_exactly_the_k_largest(values: list[float], rank: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    (cut,) = order_cuts(tensor, (rank,))
    mask = cut.keeps(tensor.abs(), torch.arange(len(values)))
    assert set(mask.nonzero().flatten().tolist()) == largest(values, rank)


@given(values=ENTRIES.filter(bool), rank=st.integers(1, 40))
def test_a_threshold_is_the_kth_value_and_keeps_all_ties(values: list[float], rank: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    rank = min(rank, len(values))
    (cut,) = order_cuts(tensor, (rank,), keep_ties=True)
    assert cut.threshold == tensor.abs().kthvalue(len(values) - rank + 1).values
    assert cut.until == EVERY
    kept = cut.keeps(tensor.abs(), torch.arange(len(values)))
    assert torch.equal(kept, tensor.abs() >= cut.threshold)


def test_cuts_at_the_ends() -> None:
    tensor = torch.tensor([1.0, -2, 2, 0, -0.0, 2])
    assert order_cuts(tensor, (0, 1, 3, 6, 99)) == (
        Cut(math.inf, 0),
        Cut(2.0, 2),
        Cut(2.0, 6),
        Cut(0.0, 5),
        Cut(0.0, 5),
    )
    assert order_cuts(torch.empty(0), (3,)) == (Cut(math.inf, 0),)


def test_a_model_is_ranked_as_one() -> None:
    order = Order(lambda params, size: (size // params["part"],), scope="scope")
    params = {"part": 2, "scope": "model"}
    tensors = {"a": torch.tensor([[5.0, -4.0]]), "b": torch.tensor([1.0, 0.5, -4.0, 0.25])}
    assert model_cuts(order, params, tensors) == (Cut(4.0, EVERY),)
    assert order.keeps_ties(params)
    assert not order.keeps_ties({"scope": "tensor"})


def fp64_sum(terms: list[float]) -> float:
    """The documented order, one addition at a time."""
    blocks = []
    for start in range(0, len(terms), BLOCK):
        lanes = [0.0] * LANES
        for offset, term in enumerate(terms[start : start + BLOCK]):
            lanes[offset % LANES] += term
        total = 0.0
        for lane in lanes:
            total += lane
        blocks.append(total)
    return math.fsum(blocks)


@pytest.mark.parametrize("size", [0, 1, 15, 17, 4095, 4096, 4097, 10_001])
def test_sums_follow_the_documented_order(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    left, right = (torch.randn(size, generator=generator) * 1e3 for _ in range(2))
    a, b = left.tolist(), right.tolist()
    sums = totals([left, right])
    assert sums.absolute == (fp64_sum([abs(x) for x in a]), fp64_sum([abs(x) for x in b]))
    assert sums.gram[0][1] == sums.gram[1][0]
    assert sums.gram[0][1] == fp64_sum([x * y for x, y in zip(a, b, strict=True)])
    assert sums.gram[0][0] == fp64_sum([x * x for x in a])


def test_sums_do_not_depend_on_tiles() -> None:
    terms = torch.randn(5 * BLOCK + 77, generator=torch.Generator().manual_seed(0)).double()
    whole = block_sums(terms)
    tiled = [s for start in (0, BLOCK, 4 * BLOCK) for s in block_sums(_part(terms, start))]
    assert tiled == whole
    assert add_blocks(tiled[::-1]) == add_blocks(whole)


def _part(terms: torch.Tensor, start: int) -> torch.Tensor:
    ends = {0: BLOCK, BLOCK: 4 * BLOCK, 4 * BLOCK: terms.numel()}
    return terms[start : ends[start]]


def test_sums_take_what_is_asked_and_report_what_is_not_finite() -> None:
    ones = torch.ones(3, dtype=torch.bfloat16)
    assert totals([ones], gram=False) == totals([ones.float()], gram=False)
    assert totals([ones], absolute=False).absolute == ()
    assert totals([ones], gram=False).gram == ()
    assert math.isnan(add_blocks([math.inf, -math.inf]))
    assert struct.pack("d", totals([torch.empty(0)]).absolute[0]) == struct.pack("d", 0.0)
