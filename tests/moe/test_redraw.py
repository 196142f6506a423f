"""Drop-Upcycling: which neurons are drawn anew, and from what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from mergekit_lite.ops import merge_tensors
from tests.moe.dense import apart, load, tensor
from tests.moe.test_identity import copies
from tests.moe.test_refusals import refused

Dense = Callable[..., Path]
PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def matrices(folder: Path, expert: int) -> dict[str, torch.Tensor]:
    """Return an expert's matrices with neurons as rows."""
    block = f"model.layers.1.block_sparse_moe.experts.{expert}"
    found = {name: tensor(folder, f"{block}.{name}.weight") for name in PARTS}
    return {**found, "w2": found["w2"].T}


def plain(folder: Path) -> dict[str, torch.Tensor]:
    """Return the dense matrices with neurons as rows."""
    found = {n: tensor(folder, f"model.layers.1.mlp.{p}.weight") for n, p in PARTS.items()}
    return {**found, "w2": found["w2"].T}


def kept(found: torch.Tensor, dense: torch.Tensor) -> dict[int, int]:
    """Return which neuron of the dense model stands where, for those that are still there."""
    same = (found[:, None, :] == dense[None, :, :]).all(-1)
    return {int(i): int(j) for i, j in same.nonzero().tolist()}


def test_without_fresh_neurons_it_is_the_dense_model(dense: Dense, tmp_path: Path) -> None:
    experts: list[Any] = [{"expert": "base", "redraw": 0.0}] * 4
    api.run(copies(dense("llama"), "mixtral", experts=experts), tmp_path / "routed")
    assert apart(dense("llama"), tmp_path / "routed") < 5e-6
    order = kept(matrices(tmp_path / "routed", 0)["w1"], plain(dense("llama"))["w1"])
    assert len(order) == 48
    assert order != {i: i for i in range(48)}  # shuffled


@pytest.mark.parametrize(("index_set", "same"), [("shared", True), ("independent", False)])
def test_half_of_the_neurons_are_fresh(
    dense: Dense, tmp_path: Path, index_set: str, same: bool
) -> None:
    """Shows V5, with the tests beside it."""
    redraw = {"ratio": 0.5, "index_set": index_set}
    experts: list[Any] = [{"expert": "base", "redraw": redraw}] * 2
    api.run(copies(dense("llama"), "mixtral", experts=experts), tmp_path / "routed")
    before, orders = plain(dense("llama")), []
    for expert in (0, 1):
        after = matrices(tmp_path / "routed", expert)
        found = {name: kept(after[name], before[name]) for name in PARTS}
        assert {len(order) for order in found.values()} == {24}
        assert (found["w1"] == found["w3"] == found["w2"]) is same
        orders.append(found["w1"])
    assert orders[0] != orders[1]
    load(tmp_path / "routed")


def test_fresh_neurons_have_the_spread_of_those_they_replace() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = 3 + 0.5 * torch.randn(512, 256, generator=generator)
    found = merge_tensors("drop_upcycle", [matrix], ratio=0.5, draw=7)
    stays = kept(found, matrix)
    fresh = found[[i for i in range(512) if i not in stays]]
    assert fresh.shape[0] == 256
    assert abs(float(fresh.mean()) - 3) < 3 * 0.5 / fresh.numel() ** 0.5 * 2
    assert abs(float(fresh.std()) / 0.5 - 1) < 0.01


def test_it_is_for_training(dense: Dense) -> None:
    experts: list[Any] = [{"expert": "base", "redraw": 0.5}] * 2
    recipe = copies(dense("llama"), "mixtral", experts=experts, for_training=False)
    assert "know nothing until they are trained" in refused(recipe)
    recipe = copies(dense("llama"), "mixtral", experts=experts, split=4, experts_per_token=4)
    assert "neither `split` nor `noise`" in refused(recipe)
