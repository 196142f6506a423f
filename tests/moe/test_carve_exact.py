"""A carved model with the router of CMoE computes what the paper says, with code of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mergekit_lite import api
from mergekit_lite.errors import RecipeError
from mergekit_lite.moe.carve._layer import Split
from mergekit_lite.moe.carve.exact import exact_router, typical
from tests.calibrate.conftest import save_model
from tests.moe.own_code import load, logits
from tests.moe.test_carve_splits import layer_of

pytestmark = pytest.mark.usefixtures("modules_of_their_own")
SLICES, SHARED = 6, 2


def described(tmp_path: Path, family: str = "llama", **carve: Any) -> dict[str, Any]:
    base = tmp_path / "base"
    if not base.exists():
        save_model(base, family)
        lines = [" ".join(f"w{3 + (i * j) % 60}" for i in range(12)) for j in range(1, 30)]
        text = "\n".join(json.dumps({"text": line}) for line in lines)
        (tmp_path / "texts.jsonl").write_text(text)
    asked = {
        "experts": SLICES, "shared": SHARED, "experts_per_token": 2,
        "router": "exact", "data": str(tmp_path / "texts.jsonl"), **carve,
    }  # fmt: skip
    return {"base": str(base), "moe": {"target": "routed", "carve": asked}}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_with_all_slices_active_it_is_the_dense_model(tmp_path: Path, family: str) -> None:
    recipe = described(tmp_path, family, experts_per_token=SLICES - SHARED)
    api.run(recipe, tmp_path / "carved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    model = load(tmp_path / "carved")
    assert torch.allclose(logits(model), logits(plain), atol=5e-6)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), logits(model))


def test_it_computes_what_the_paper_says(tmp_path: Path) -> None:
    out = tmp_path / "carved"
    api.run(described(tmp_path), out)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    made = json.loads((out / "moe_manifest.json").read_text())["gate"]["made"]
    orders = json.loads((out / "carve_neurons.json").read_text())
    for index, layer in enumerate(dense.model.layers):
        mlp, own = layer.mlp, made["layers"][str(index)]["typical"]
        slices = torch.tensor(orders[str(index)]).reshape(SLICES, -1)
        for number, neuron in enumerate(own):
            assert neuron in slices[SHARED + number]
        rows = [
            torch.nn.functional.normalize(matrix.weight[own].double(), dim=1)
            for matrix in (mlp.gate_proj, mlp.up_proj)
        ]

        def forward(x: Any, mlp: Any = mlp, slices: Any = slices, rows: Any = rows) -> Any:
            fired = mlp.act_fn(x.double() @ rows[0].T) * (x.double() @ rows[1].T)
            chosen = fired.abs().softmax(-1).topk(2, -1).indices + SHARED
            on = torch.zeros(*x.shape[:-1], SLICES).scatter(-1, chosen, 1.0)
            on[..., :SHARED] = 1.0
            keep = torch.zeros(*x.shape[:-1], 49)
            keep[..., slices.reshape(-1)] = on.repeat_interleave(slices.shape[1], -1)
            active = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x) * keep[..., :48]
            return mlp.down_proj(active)

        mlp.forward = forward
    assert torch.allclose(logits(load(out)), logits(dense), atol=5e-6)
    assert made["layers"]["0"]["agreement"] > 0.5  # chance: 2 of 4


def test_the_typical_neuron_fires_as_its_slice_does() -> None:
    # Neurons 0 to 2 fire for tokens 0 and 1, 1 besides for token 2; 3 and 4 for tokens 2 and 3.
    firing = np.array([[0, 1, 2], [2, 0, 1], [1, 3, 4], [3, 4, 5]])
    split = Split(np.array([5]), (np.array([1, 2, 0]), np.array([3, 4])))
    assert typical(firing, split, 6).tolist() == [2, 3]


def test_the_typical_neuron_has_the_least_distance() -> None:
    layer = layer_of(24, tokens=200)
    split = Split(np.arange(4), (np.arange(4, 14), np.arange(14, 24)))
    found = exact_router(layer, split, per_token=1)
    inputs = layer.seen() / np.linalg.norm(layer.seen(), axis=1, keepdims=True)
    gate, up = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (layer.gate, layer.up))
    values = inputs @ gate.T
    strength = np.abs(values / (1 + np.exp(-values)) * (inputs @ up.T))
    marks = (strength.argsort(1).argsort(1) >= 14).astype(float)
    for own, neuron in zip(split.routed, found.neurons, strict=True):
        centre = marks[:, own].mean(1)
        assert neuron == own[np.abs(marks[:, own] - centre[:, None]).sum(0).argmin()]
    np.testing.assert_allclose(found.gate, gate[found.neurons], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.up, axis=1), 1.0, atol=1e-6)


def test_it_needs_a_class_of_its_own_and_texts(tmp_path: Path) -> None:
    recipe = described(tmp_path)
    for moe, message in (
        ({"target": "auto"}, "write `target: routed`"),
        ({"carve": {**recipe["moe"]["carve"], "router": "ridge"}}, "or write `router: exact`"),
        ({"carve": {"experts": 4, "experts_per_token": 2, "router": "exact", "method": "kmeans"}},
         "`exact` need texts"),
    ):  # fmt: skip
        with pytest.raises(RecipeError) as caught:
            api.plan({**recipe, "moe": {**recipe["moe"], **moe}})
        assert message in str(caught.value)
