"""Scores of experts against sums written out token by token, and which experts they keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite import api
from mergekit_lite.calibrate.collect.rates import RateCollector
from mergekit_lite.calibrate.run import Settings, calibrate
from mergekit_lite.calibrate.texts import prompts
from mergekit_lite.errors import RecipeError
from mergekit_lite.moe.prune.choose import best, super_experts
from mergekit_lite.moe.prune.scores import SCORES
from mergekit_lite.sources import resolve
from tests.checkpoints import write_tokenizer
from tests.moe.dense import load
from tests.moe.routed import make, routers

DEAD = 3
"""An expert whose down projection is zero, in every layer."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A routed model with a dead expert, and its statistics. Read only."""
    root = tmp_path_factory.mktemp("measured")
    base = make("mixtral", root / "base")
    write_tokenizer(base, 96)
    tensors = load_file(base / "model.safetensors")
    for name in tensors:
        if f"experts.{DEAD}.w2" in name:
            tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    words = [" ".join(f"w{3 + (7 * i + j * j) % 90}" for j in range(30)) for i in range(8)]
    calibrate(resolve(str(base), relative_to=root), prompts("a", words), root / "stats",
              kinds=("rates",), settings=Settings(length=64))  # fmt: skip
    return base, root / "stats"


def recipe(measured: tuple[Path, Path], method: str, keep: float = 4, **prune: Any) -> dict:
    base, stats = measured
    return {
        "base": str(base),
        "moe": {"prune": {"keep": keep, "method": method, "stats": str(stats), **prune}},
    }


def scores(plan: Any, layer: int) -> list[float]:
    module = plan.moe["pruned"]["modules"][f"model.layers.{layer}.block_sparse_moe"]
    found: list[float] = module["scores"]
    return found


def by_hand(base: Path) -> dict[str, np.ndarray]:
    """Return every score of the experts of layer 1, added up token by token."""
    model, text = load(base), {"stream": [], "input": [], "chosen": []}
    layer = model.model.layers[1]
    layer.post_attention_layernorm.register_forward_pre_hook(
        lambda module, given: text["stream"].append(given[0].reshape(-1, 32))
    )
    layer.mlp.register_forward_pre_hook(
        lambda module, given: text["input"].append(given[0].reshape(-1, 32))
    )
    routers(model)[1].register_forward_hook(lambda m, given, out: text["chosen"].append(out[1:]))
    from mergekit_lite.calibrate.tokens import load_tokenizer

    words = [" ".join(f"w{3 + (7 * i + j * j) % 90}" for j in range(30)) for i in range(8)]
    tokenizer = load_tokenizer(base)
    sums = {name: np.zeros(8) for name in SCORES}
    count = np.zeros(8)
    for line in words:
        ids = torch.tensor([tokenizer.encode(line)])
        for value in text.values():
            value.clear()
        with torch.no_grad():
            model(ids)
            weights, chosen = text["chosen"][0]
            for at, stream in enumerate(text["stream"][0]):
                said = {}
                for weight, expert in zip(weights[at], chosen[at], strict=True):
                    gate, up = (
                        layer.mlp.experts.gate_up_proj[expert] @ text["input"][0][at]
                    ).chunk(2)
                    out = layer.mlp.experts.down_proj[expert] @ (
                        torch.nn.functional.silu(gate) * up
                    )
                    said[int(expert)] = float(weight), out
                after = stream + sum(weight * out for weight, out in said.values())
                turn = max(0.0, 1 - float(torch.cosine_similarity(stream, after, dim=0)))
                for expert, (weight, out) in said.items():
                    norm = float(out.norm())
                    count[expert] += 1
                    sums["frequency"][expert] += 1
                    sums["gate"][expert] += weight
                    sums["ean"][expert] += norm
                    sums["man"][expert] += norm
                    sums["msan"][expert] += norm**2
                    sums["reap"][expert] += weight * norm
                    sums["easy_ep"][expert] += weight * norm * turn
                    largest = max(sums["max_activation"][expert], float(out.abs().max()))
                    sums["max_activation"][expert] = largest
    for name in ("man", "msan", "reap"):
        sums[name] /= np.maximum(count, 1)
    return sums


def test_scores_are_those_added_up_token_by_token(measured: tuple[Path, Path]) -> None:
    expected = by_hand(measured[0])
    for method, wanted in expected.items():
        found = scores(api.plan(recipe(measured, method)), 1)
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6, err_msg=method)


def test_an_expert_that_says_nothing_goes_first(measured: tuple[Path, Path]) -> None:
    """V14, and half of V13."""
    for method in ("reap", "ean", "man", "msan", "max_activation", "easy_ep"):
        plan = api.plan(recipe(measured, method, keep=7))
        for layer in range(3):
            assert scores(plan, layer)[DEAD] == 0
            module = plan.moe["pruned"]["modules"][f"model.layers.{layer}.block_sparse_moe"]
            assert module["kept"] == [0, 1, 2, 4, 5, 6, 7]


def test_what_is_kept_is_what_scores_highest(measured: tuple[Path, Path], tmp_path: Path) -> None:
    api.run(recipe(measured, "reap", keep=0.5), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "moe_manifest.json").read_text())
    for module in manifest["modules"].values():
        ranked = sorted(range(8), key=lambda e: -module["scores"][e])
        assert module["kept"] == sorted(ranked[:4])
    assert all(len(digest) == 64 for digest in manifest["statistics"].values())


def test_best_keeps_ties_in_order_and_groups_even() -> None:
    assert best(np.array([1.0, 2.0, 2.0, 2.0]), 2) == (1, 2)
    assert best(np.array([9.0, 8.0, 1.0, 2.0]), 2, groups=2) == (0, 3)
    assert best(np.array([9.0, 8.0, 1.0, 2.0]), 2, protected=[2]) == (0, 2)


def test_super_experts_stand_out_in_the_first_three_quarters() -> None:
    peaks = {layer: np.ones(64) for layer in range(4)}
    peaks[1][7] = 100.0
    peaks[3][5] = 90.0
    assert super_experts(peaks, everywhere=False) == {0: [], 1: [7], 2: []}
    assert super_experts(peaks, everywhere=True)[3] == [5]
    peaks[1][7] = peaks[3][5] = 1.0
    assert not any(super_experts(peaks, everywhere=True).values())


def test_what_is_protected_stays(measured: tuple[Path, Path]) -> None:
    stats = measured[1]
    peaks = {
        layer: load_file(stats / "rates" / f"layer-{layer:05d}.safetensors")[
            f"model.layers.{layer}.mlp.gate.peak"
        ]
        for layer in range(3)
    }
    largest = max(peaks, key=lambda layer: float(peaks[layer].max()))
    plan = api.plan(recipe(measured, "frequency", keep=1, protect="outliers"))
    module = plan.moe["pruned"]["modules"][f"model.layers.{largest}.block_sparse_moe"]
    assert module["kept"] == [int(peaks[largest].argmax())]


def test_router_rows_that_tuning_left_alone_go_first(tmp_path: Path) -> None:
    before = make("qwen3_moe", tmp_path / "before")
    after = make("qwen3_moe", tmp_path / "after")
    tensors = load_file(after / "model.safetensors")
    for name in tensors:
        if name.endswith("mlp.gate.weight"):
            tensors[name][[1, 4, 6]] *= 1.5
            tensors[name][[0, 2]] *= -1  # moved, but no longer than they were
    save_file(tensors, after / "model.safetensors", {"format": "pt"})
    for method, keep, kept in (
        ("router_norm", 3, [1, 4, 6]),
        ("router_change", 5, [0, 1, 2, 4, 6]),
    ):
        plan = api.plan(
            {
                "base": str(after),
                "experts": {"before": str(before)},
                "moe": {"prune": {"keep": keep, "method": method, "pretrained": "before"}},
            }
        )
        for module in plan.moe["pruned"]["modules"].values():
            assert module["kept"] == kept


def test_statistics_that_do_not_fit_are_refused(
    measured: tuple[Path, Path], tmp_path: Path
) -> None:
    base, stats = measured

    def refused(wanted: dict[str, Any]) -> str:
        with pytest.raises(RecipeError) as caught:
            api.plan(wanted)
        return str(caught.value)

    other = make("mixtral", tmp_path / "other", num_local_experts=4)
    assert "speaks of 8 experts" in refused(recipe((other, stats), "reap", keep=2))
    deeper = make("mixtral", tmp_path / "deeper", num_hidden_layers=4)
    assert "of layer 3" in refused(recipe((deeper, stats), "reap"))
    assert "no statistics `rates`" in refused(recipe((base, tmp_path / "none"), "reap"))


def test_the_names_of_what_scores_read_are_collected() -> None:
    documented = RateCollector.__doc__ or ""
    for score in SCORES.values():
        for name in score.needs:
            assert f"`.{name}`" in documented
