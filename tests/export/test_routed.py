"""Routed models as transformers writes them, in both layouts, merged and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from tests.checkpoints import read_weights

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip


def qwen() -> Any:
    return transformers.Qwen3MoeConfig(
        **SIZES, head_dim=8, moe_intermediate_size=12, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[1], norm_topk_prob=True,
    )  # fmt: skip


def mixtral() -> Any:
    return transformers.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)


def made(folder: Path, config: Any, seed: int, *, fused: bool = False) -> Path:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder, save_original_format=not fused)
    return folder


def loaded(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.isfinite(model(torch.arange(6)[None]).logits).all()
    return model


@pytest.mark.parametrize("config", [qwen, mixtral])
@pytest.mark.parametrize("fused_base", [False, True])
def test_one_of_each_layout(tmp_path: Path, config: Any, fused_base: bool) -> None:
    base = made(tmp_path / "base", config(), 1, fused=fused_base)
    other = made(tmp_path / "other", config(), 2, fused=not fused_base)
    same = made(tmp_path / "same", config(), 2, fused=fused_base)
    assert set(read_weights(base)) == set(read_weights(same))
    results = []
    for expert in (other, same):
        steps = [{"linear": {"weights": {"base": 1, "e": 1}}}]
        recipe = {"base": str(base), "experts": {"e": str(expert)}, "steps": steps}
        api.run(recipe, tmp_path / f"out-{expert.name}")
        results.append(read_weights(tmp_path / f"out-{expert.name}"))
    mixed, want = results
    assert set(mixed) == set(read_weights(base))
    assert all(torch.equal(mixed[name], want[name]) for name in want)
    loaded(tmp_path / "out-other")


def test_another_depth_renumbers_the_dense_layers(tmp_path: Path) -> None:
    base = made(tmp_path / "base", qwen(), 1)
    recipe = {"base": str(base), "slices": [{"take": "base", "layers": "0-2,1-2"}]}
    api.run(recipe, tmp_path / "out")
    config = loaded(tmp_path / "out").config
    assert (config.num_hidden_layers, config.mlp_only_layers) == (5, [1, 3])
