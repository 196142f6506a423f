"""Shared experts, widths that differ, adapters, stages, noise and layers that stay dense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from mergekit_lite.errors import RecipeError
from tests.moe.dense import apart, config, load, logits, make, tensor
from tests.moe.test_identity import copies

Dense = Callable[..., Path]


@pytest.mark.parametrize(
    ("donor", "target"),
    [("qwen2", "qwen2_moe"), ("llama", "glm4_moe"), ("llama", "granitemoeshared"),
     ("ernie4_5", "ernie4_5_moe"), ("hunyuan_v1_dense", "hunyuan_v1_moe")],
)  # fmt: skip
def test_a_shared_expert_alone_is_the_dense_model(
    dense: Dense, tmp_path: Path, donor: str, target: str
) -> None:
    # 4.3 and 6.4: the shared expert is the dense layer, the routed ones say nothing.
    experts: list[Any] = [{"expert": "base", "residual_scale": 0.0}] * 4
    api.run(copies(dense(donor), target, experts=experts, shared="base"), tmp_path / "routed")
    assert apart(dense(donor), tmp_path / "routed") < 5e-6


def test_half_of_it_shared_and_half_routed(dense: Dense, tmp_path: Path) -> None:
    experts: list[Any] = [{"expert": "base", "residual_scale": 0.5}] * 2
    shared = {"expert": "base", "residual_scale": 0.5}
    api.run(copies(dense("llama"), "glm4_moe", experts=experts, shared=shared), tmp_path / "routed")
    assert apart(dense("llama"), tmp_path / "routed") < 5e-6


def test_a_shared_and_routed_experts_in_full_are_too_much(dense: Dense) -> None:
    plan = api.plan(copies(dense("llama"), "glm4_moe", shared="base"))
    assert any("add up to about 2 times" in warning for warning in plan.warnings)


@pytest.mark.parametrize("target", ["mixtral", "granitemoe", "glm4_moe"])
def test_narrower_experts_are_padded_with_zeros(
    dense: Dense, tmp_path: Path, target: str
) -> None:  # 4.11
    narrow = make("llama", tmp_path / "narrow", seed=9, intermediate_size=40)
    recipe = copies(narrow, target, experts=["base", "wide", "base"], experts_per_token=1)
    recipe["experts"] = {"wide": str(dense("llama", 1))}
    api.run(recipe, tmp_path / "routed")
    assert config(tmp_path / "routed")["intermediate_size"] >= 40
    model = load(tmp_path / "routed")
    with torch.no_grad():
        for layer in model.model.layers:
            block = getattr(layer, "mlp", None) or layer.block_sparse_moe
            router = getattr(block, "gate", None) or block.router
            router.weight.zero_()
            if hasattr(router, "e_score_correction_bias"):
                router.e_score_correction_bias[:] = torch.tensor([1.0, -1.0, 0.0])
    if target == "glm4_moe":  # its bias chooses the first expert, whose padding adds nothing
        from tests.moe.dense import tokens

        with torch.no_grad():
            assert (model(tokens()).logits - logits(narrow)).abs().max() < 5e-6
    else:
        names = {"mixtral": "model.layers.1.block_sparse_moe.experts.0.w2.weight",
                 "granitemoe": "model.layers.1.block_sparse_moe.output_linear.weight"}  # fmt: skip
        found = tensor(tmp_path / "routed", names[target]).reshape(-1, 32, 48)[0]
        assert torch.equal(found[:, :40], tensor(narrow, "model.layers.1.mlp.down_proj.weight"))
        assert not found[:, 40:].any()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_is_an_expert(dense: Dense, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    settings = LoraConfig(r=4, target_modules=["gate_proj", "up_proj", "down_proj", "q_proj"],
                          init_lora_weights=False)  # fmt: skip
    tuned = get_peft_model(load(dense("llama")), settings)
    tuned.save_pretrained(tmp_path / "lora")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    recipe = {
        "base": str(dense("llama")),
        "experts": {"tuned": {"lora": str(tmp_path / "lora")}},
        "steps": ["task_arithmetic"],
        "moe": {"target": "mixtral", "gate": "zeros", "experts_per_token": 1},
    }
    api.run(recipe, tmp_path / "routed")
    assert apart(tmp_path / "merged", tmp_path / "routed") < 5e-6
    recipe["moe"] = {"target": "granitemoe", "gate": "zeros"}
    with pytest.raises(RecipeError, match="neither padded, cut nor stacked"):
        api.plan(recipe)


def test_a_stage_is_an_expert(dense: Dense, tmp_path: Path) -> None:
    recipe = {
        "base": str(dense("llama")),
        "stages": {
            "mix": {
                "base": str(dense("llama")),
                "experts": {"a": str(dense("llama", 1)), "b": str(dense("llama", 2))},
                "steps": ["linear"],
            }
        },
        "experts": {"mixed": "@mix", "b": str(dense("llama", 2))},
        "moe": {"target": "granitemoe", "gate": "random"},
    }
    api.run(recipe, tmp_path / "routed")
    name = "model.layers.1.mlp.up_proj.weight"
    mean = (tensor(dense("llama", 1), name) + tensor(dense("llama", 2), name)) / 2
    found = tensor(tmp_path / "routed", "model.layers.1.block_sparse_moe.input_linear.weight")
    assert (found[0, 48:] - mean).abs().max() < 1e-7
    assert torch.equal(found[1, 48:], tensor(dense("llama", 2), name))


def test_noise_is_a_part_of_each_matrix(dense: Dense, tmp_path: Path) -> None:
    experts: list[Any] = [
        "base",
        {"expert": "base", "noise": 0.01},
        {"expert": "base", "noise": 0.01},
    ]
    recipe = copies(dense("llama"), "mixtral", experts=experts)
    api.run(recipe, tmp_path / "routed")
    plain = tensor(dense("llama"), "model.layers.1.mlp.gate_proj.weight")
    found = [
        tensor(tmp_path / "routed", f"model.layers.1.block_sparse_moe.experts.{n}.w1.weight")
        for n in range(3)
    ]
    assert torch.equal(found[0], plain)
    for noisy in found[1:]:
        assert abs(float((noisy - plain).std() / plain.std()) - 0.01) < 1e-3
    assert not torch.equal(found[1], found[2])
    assert 0 < apart(dense("llama"), tmp_path / "routed") < 0.5


@pytest.mark.parametrize(
    ("donor", "target", "layers"),
    [("qwen2", "qwen2_moe", "1"), ("qwen3", "qwen3_moe", "0,2"), ("llama", "glm4_moe", "1-"),
     ("ernie4_5", "ernie4_5_moe", "2-")],
)  # fmt: skip
def test_layers_that_stay_dense(
    dense: Dense, tmp_path: Path, donor: str, target: str, layers: str
) -> None:
    api.run(copies(dense(donor), target, layers=layers), tmp_path / "routed")
    assert apart(dense(donor), tmp_path / "routed") < 5e-6


def test_layers_that_stay_dense_are_merged_like_the_rest(dense: Dense, tmp_path: Path) -> None:
    recipe = {
        "base": str(dense("qwen3")),
        "experts": {"a": str(dense("qwen3", 1)), "b": str(dense("qwen3", 2))},
        "steps": ["linear"],
        "moe": {"target": "qwen3_moe", "layers": "1", "gate": "random"},
    }
    api.run(recipe, tmp_path / "routed")
    name = "model.layers.0.mlp.down_proj.weight"
    mean = (tensor(dense("qwen3", 1), name) + tensor(dense("qwen3", 2), name)) / 2
    assert (tensor(tmp_path / "routed", name) - mean).abs().max() < 1e-7


def test_half_precision_keeps_what_choices_hang_on(dense: Dense, tmp_path: Path) -> None:
    """Shows F24."""
    recipe = copies(dense("qwen2"), "qwen2_moe")
    recipe["output"] = {"dtype": "float16"}
    api.run(recipe, tmp_path / "routed")
    gate = tensor(tmp_path / "routed", "model.layers.0.mlp.shared_expert_gate.weight")
    assert gate.dtype == torch.float32  # 2^-30 is zero in half precision
    recipe = copies(dense("llama"), "glm4_moe")
    recipe["output"] = {"dtype": "bfloat16"}
    api.run(recipe, tmp_path / "sigmoid")
    bias = tensor(tmp_path / "sigmoid", "model.layers.0.mlp.gate.e_score_correction_bias")
    assert bias.dtype == torch.float32
