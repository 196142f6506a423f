"""Experts that are made of the two least alike ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergekit_lite import api
from mergekit_lite.ops._place import Place, random_key
from mergekit_lite.ops._random import draws, uniforms
from mergekit_lite.ops.combine.upit import Birth, births
from tests.checkpoints import read_weights
from tests.moe.dense import load, tokens
from tests.moe.test_refusals import refused

Dense = Callable[..., Path]
NAMES = ("math", "code", "law")


def recipe(dense: Dense, experts: int, density: float = 0.5, **more: Any) -> dict[str, Any]:
    return {
        "base": str(dense("llama")),
        "experts": {name: str(dense("llama", seed)) for seed, name in enumerate(NAMES, 1)},
        "moe": {
            "target": "mixtral",
            "expand": {"experts": experts, "density": density},
            "gate": "random",
            "for_training": True,
            **more,
        },
    }


def test_each_pair_has_one_child_the_least_alike_first() -> None:
    gram = [[1.0, 0.9, 0.1], [0.9, 1.0, 0.5], [0.1, 0.5, 1.0]]
    found = births(gram, 3, 1.0, 7)

    shares = [float(u) for u in uniforms(0, 3, random_key(7, "upit", "", "share"))]
    assert [birth.share for birth in found] == pytest.approx(shares, rel=1e-6)
    assert found[0].parents == (0, 2)
    s = found[0].share
    own = s * s + (1 - s) ** 2 + 2 * s * (1 - s) * 0.1
    others = [s * 1 + (1 - s) * 0.1, s * 0.9 + (1 - s) * 0.5, s * 0.1 + (1 - s)]
    near = {(i, 3): others[i] / own**0.5 for i in range(3)} | {(0, 1): 0.9, (1, 2): 0.5}
    assert found[1].parents == min(near, key=lambda pair: near[pair])
    assert len({birth.parents for birth in found}) == 3


def test_children_are_sparse_mixtures_of_their_parents(dense: Dense, tmp_path: Path) -> None:
    for name in ("one", "two"):
        api.run(recipe(dense, 5), tmp_path / name)
    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()

    models = [read_weights(dense("llama", seed)) for seed in range(4)]
    keys = [key for key in models[0] if ".mlp." in key]
    taus = [{key: one[key] - models[0][key] for key in keys} for one in models[1:]]
    gram = [[sum(float((a[k] * b[k]).double().sum()) for k in keys) for b in taus] for a in taus]
    found = births(gram, 2, 0.5, random_key(0, "upit", "", "") >> 12)
    out = read_weights(tmp_path / "one")
    parts = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for layer in range(3):
        for part, stored in parts.items():
            key = f"model.layers.{layer}.mlp.{part}.weight"
            values = [tau[key] for tau in taus]
            for number, birth in enumerate(found):
                values.append(by_hand(values, birth, number, key))
                name = f"model.layers.{layer}.block_sparse_moe.experts.{3 + number}.{stored}.weight"
                torch.testing.assert_close(out[name], models[0][key] + values[-1])


def by_hand(values: list[Tensor], birth: Birth, number: int, key: str) -> Tensor:
    draw, parts = random_key(0, "upit", "", key) >> 12, []
    for parent in birth.parents:
        drawn = draws(Place().index(values[0]), random_key(draw, "upit", str(number), str(parent)))
        parts.append(torch.where(drawn < 2**31, 2 * values[parent], 0.0))
    return birth.share * parts[0] + (1 - birth.share) * parts[1]


def test_children_of_one_model_are_that_model_and_the_result_runs(
    dense: Dense, tmp_path: Path
) -> None:
    alike = recipe(dense, 4, density=1.0)
    alike["experts"] = {name: str(dense("llama", 1)) for name in ("math", "code")}
    api.run(alike, tmp_path / "alike")
    out, own = read_weights(tmp_path / "alike"), read_weights(dense("llama", 1))
    for expert in range(4):
        name = f"model.layers.1.block_sparse_moe.experts.{expert}.w1.weight"
        torch.testing.assert_close(out[name], own["model.layers.1.mlp.gate_proj.weight"])

    api.run(recipe(dense, 6, target="qwen3_moe") | {"base": str(dense("qwen3"))} | {
        "experts": {name: str(dense("qwen3", seed)) for seed, name in enumerate(NAMES, 1)}
    }, tmp_path / "six")  # fmt: skip
    with torch.no_grad():
        assert load(tmp_path / "six")(tokens()).logits.isfinite().all()
    manifest = json.loads((tmp_path / "six" / "moe_manifest.json").read_text())
    assert [one["expert"] for one in manifest["experts"]] == [
        *NAMES, "child-1", "child-2", "child-3",
    ]  # fmt: skip
    assert manifest["expand"] == {"experts": 6, "density": 0.5}


def test_what_cannot_be_expanded_is_refused(dense: Dense) -> None:
    assert "there are 3 experts already" in refused(recipe(dense, 3))
    assert "are for training" in refused(recipe(dense, 5, for_training=False))
    assert "are stored in one tensor" in refused(recipe(dense, 5, target="granitemoe"))
    assert "are cut into slices" in refused(recipe(dense, 5, split=2))
    few = recipe(dense, 5)
    few["moe"]["experts"] = ["math", "base"]
    text = refused(few)
    assert "two that differ from the base, and there are 1" in text
