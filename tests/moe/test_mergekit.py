"""A recipe of `mergekit-moe` is planned and run as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from mergekit_lite import api
from tests.moe.dense import config, load, tensor


def test_a_recipe_of_mergekit_moe_runs(dense: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tmp_path / "moe.yml"
    recipe.write_text(
        f"base_model: {dense('llama')}\n"
        "gate_mode: random\n"
        "experts:\n"
        f"  - source_model: {dense('llama', 1)}\n"
        "    residual_scale: 0.5\n"
        f"  - source_model: {dense('llama', 2)}\n"
        "    noise_scale: 0.01\n"
    )
    out = tmp_path / "routed"
    api.run(recipe, out)
    load(out)
    assert config(out)["architectures"] == ["MixtralForCausalLM"]
    block = "model.layers.0.block_sparse_moe"
    scaled = tensor(dense("llama", 1), "model.layers.0.mlp.down_proj.weight") * 0.5
    assert torch.equal(tensor(out, f"{block}.experts.0.w2.weight"), scaled)
    plain = tensor(dense("llama", 2), "model.layers.0.mlp.up_proj.weight")
    noise = tensor(out, f"{block}.experts.1.w3.weight") - plain
    assert 0.009 < float(noise.std()) < 0.011
    assert 0.9 < float(tensor(out, f"{block}.gate.weight").std()) < 1.1
