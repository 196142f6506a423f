"""Ops on rows and whole tensors, against dense formulas in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergekit_lite.ops import _order, get, merge_tensors
from mergekit_lite.ops._order import ascending, cuts_of
from mergekit_lite.ops._statistics import order_cuts
from mergekit_lite.ops.transform.magprune import chances


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=50)
def test_rows_are_ranked_as_a_stable_sort_does(rows: int, width: int, seed: int) -> None:
    x = (normal(rows, width, seed=seed) * 3).round()
    expected = x.abs().sort(dim=-1, stable=True).indices
    assert torch.equal(ascending(x), expected)


@given(st.integers(1, 3000), st.sampled_from(["normal", "ties", "zeros"]), st.data())
@settings(max_examples=80)
def test_a_cut_is_that_of_a_sort(size: int, kind: str, data: st.DataObject) -> None:
    values = normal(size, seed=size).abs()
    values = {"normal": values, "ties": (values * 2).round(), "zeros": values * (values > 1)}[kind]
    ranks = data.draw(st.lists(st.integers(0, size), min_size=1, max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_order, "_SWEPT", 100)
        assert cuts_of(values, ranks) == order_cuts(values, ranks)


def test_chances_rise_with_the_rank() -> None:
    row = torch.tensor([[0.3, -0.1, 0.5, 0.2, -0.4]])
    expected = torch.tensor([[0.70, 0.63, 0.77, 0.665, 0.735]])
    torch.testing.assert_close(chances(row, 0.7, 0.07), expected)
    assert chances(torch.ones(3, 1), 0.7, 0.07).tolist() == [[pytest.approx(0.7)]] * 3


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_magprune_keeps_each_rank_as_often_as_it_says(epsilon: float) -> None:
    width, rows = 64, 4096
    delta = torch.arange(1.0, width + 1).expand(rows, width).contiguous()
    kept = merge_tensors("magprune", [delta], density=0.6, epsilon=epsilon) != 0
    share = kept.double().mean(dim=0)
    expected = torch.linspace(0.6 - epsilon, 0.6 + epsilon, width, dtype=torch.float64)
    assert float((share - expected).abs().max()) < 5 * 0.5 / rows**0.5


def test_magprune_divides_by_the_chance() -> None:
    delta = normal(64, 33)
    rows = merge_tensors("magprune", [delta], density=0.5, epsilon=0.3)
    plain = merge_tensors("magprune", [delta], density=0.5, epsilon=0.3, rescale="none")
    assert torch.equal(rows, plain / chances(delta, 0.5, 0.3))
    scaled = merge_tensors("magprune", [delta], density=0.5, epsilon=0.3, rescale="l1")
    assert float(scaled.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-5)
    assert torch.equal(scaled != 0, plain != 0)


def test_a_window_outside_the_chances_is_refused() -> None:
    for op in ("magprune", "della", "della_linear"):
        assert get(op).problems({"density": 0.05, "epsilon": 0.07}) != []
        assert get(op).problems({"density": 0.95, "epsilon": 0.05}) != []
        assert get(op).problems({"density": 1.0, "epsilon": 0.07}) == []


def dense_sce(deltas: list[Tensor], topk: float, masked: bool) -> Tensor:
    taus = np.stack([d.double().numpy().ravel() for d in deltas])
    varies = taus.var(axis=0)
    count = max(1, int(topk * np.count_nonzero(varies)))
    mask = np.zeros(taus.shape[1])
    mask[np.argsort(-varies, kind="stable")[:count]] = 1
    squares = ((taus * mask) ** 2).sum(axis=1)
    share = (squares / squares.sum())[:, None]
    merged = taus * mask if masked else taus
    agrees = np.sign(merged) == np.where(merged.sum(axis=0) >= 0, 1, -1)
    den = (share * agrees).sum(axis=0)
    return torch.tensor((share * agrees * merged).sum(axis=0) / np.where(den, den, 1)).float()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("topk", [0.1, 0.6])
@pytest.mark.parametrize("count", [2, 4])
def test_sce_is_its_formula(
    monkeypatch: pytest.MonkeyPatch, count: int, topk: float, masked: bool
) -> None:
    monkeypatch.setattr(_order, "TILE", 100)
    deltas = [1e-4 * normal(19, 23, seed=i) for i in range(count)]
    got = merge_tensors("sce", deltas, select_topk=topk, merge_masked=masked)
    expected = dense_sce(deltas, topk, masked).reshape(19, 23)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-9)


def test_small_deltas_are_weighed_as_large_ones() -> None:
    deltas = [1e-4 * normal(50), 3e-4 * normal(50, seed=1)]
    got = merge_tensors("sce", deltas, select_topk=1.0)
    large = merge_tensors("sce", [d * 1e4 for d in deltas], select_topk=1.0) * 1e-4
    torch.testing.assert_close(got, large, rtol=1e-5, atol=0)


def dense_fusion(base: Tensor, expert: Tensor) -> Tensor:
    a, b = base.double(), expert.double()
    q, p = a.softmax(-1) + 1e-8, b.softmax(-1) + 1e-8
    scores = (b - a).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = scores.flatten().sort().values
    low, middle, high = (ordered[int(f * (len(ordered) - 1))] for f in (0.25, 0.5, 0.75))
    return torch.where(scores >= middle + 1.5 * (high - low), expert, base)


@pytest.mark.parametrize("shape", [(40, 37), (300,), (5, 6, 7)])
def test_arcee_fusion_is_its_formula(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr("mergekit_lite.ops.combine.arcee_fusion.TILE", 111)
    base = normal(*shape)
    expert = base + 0.1 * normal(*shape, seed=1) ** 3
    got = merge_tensors("arcee_fusion", [base, expert])
    assert torch.equal(got, dense_fusion(base, expert))
    taken = float((got == expert).float().mean())
    assert 0.01 < taken < 0.5
