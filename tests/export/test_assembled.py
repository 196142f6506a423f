"""Models of another depth load in transformers and compute what their layers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from tests.checkpoints import perturbed, read_weights, tiny_llama

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip


def made(folder: Path, config: Any, seed: int = 0) -> Path:
    """Write a random model of a config, as transformers does."""
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def run(tmp_path: Path, recipe: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Run a recipe and return the loaded model and the report."""
    api.run(recipe, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    logits = model(torch.arange(6)[None]).logits
    assert torch.isfinite(logits).all()
    return model, json.loads((tmp_path / "out" / "merge_report.json").read_text())


def test_a_taller_llama(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=3)
    math = perturbed(base, tmp_path / "math", seed=1, scale=0.05)
    recipe = {
        "base": str(base),
        "experts": {"math": {"model": str(math)}},
        "slices": [
            {"take": "base", "layers": "0-1"},
            {"layers": {"base": "1", "math": "2"}, "steps": [{"linear": {
                "weights": {"base": 0.5, "math": 0.5}}}]},
            {"take": "math", "layers": "1-"},
        ],
    }  # fmt: skip
    model, report = run(tmp_path, recipe)
    assert model.config.num_hidden_layers == 5
    assert [row["from"] for row in report["layer_map"]] == [
        {"base": 0}, {"base": 1}, {"base": 1, "math": 2}, {"math": 1}, {"math": 2},
    ]  # fmt: skip
    out, left, right = (read_weights(tmp_path / name) for name in ("out", "base", "math"))
    name = "model.layers.{}.self_attn.q_proj.weight"
    mean = (left[name.format(1)].float() + right[name.format(2)].float()) / 2
    assert torch.equal(out[name.format(2)], mean.to(torch.bfloat16))
    assert torch.equal(out[name.format(4)], right[name.format(2)])


def test_repeated_layers_compute_as_the_same_module_run_twice(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=2, dtype="float32")
    model, _ = run(tmp_path, {"base": str(base), "slices": [{"take": "base", "layers": "0,0,1"}]})
    twice = transformers.AutoModelForCausalLM.from_pretrained(base)
    layers = twice.model.layers
    twice.model.layers = torch.nn.ModuleList([layers[0], layers[0], layers[1]])
    twice.config.num_hidden_layers = 3
    tokens = torch.arange(6)[None]
    got, want = model(tokens).logits, twice(tokens, use_cache=False).logits
    assert torch.allclose(got, want, atol=1e-5)


def test_layer_types_of_qwen3(tmp_path: Path) -> None:
    types = ["full_attention", "sliding_attention"] * 2
    config = transformers.Qwen3Config(
        **SIZES, num_hidden_layers=4, layer_types=types, use_sliding_window=True,
        sliding_window=8, max_window_layers=1,
    )  # fmt: skip
    base = made(tmp_path / "base", config)
    model, _ = run(tmp_path, {"base": str(base), "slices": [{"take": "base", "layers": "0-2,1-"}]})
    assert model.config.num_hidden_layers == 6
    assert model.config.layer_types == [types[n] for n in (0, 1, 2, 1, 2, 3)]


def test_a_shorter_gemma3(tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(**SIZES, num_hidden_layers=7, sliding_window=8)
    base = made(tmp_path / "base", config)
    types = config.layer_types
    assert len(set(types)) == 2
    model, _ = run(tmp_path, {"base": str(base), "slices": [{"take": "base", "layers": "0,2,5-6"}]})
    assert model.config.num_hidden_layers == 4
    assert model.config.layer_types == [types[n] for n in (0, 2, 5, 6)]


def test_the_language_model_of_a_gemma3_with_eyes(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "image_size": 28,
        "num_attention_heads": 2, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config={**SIZES, "num_hidden_layers": 3}, vision_config=vision, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    recipe = {"base": str(tmp_path / "base"), "slices": [{"take": "base", "layers": "0-2,2"}]}
    api.run(recipe, tmp_path / "out")
    model, info = transformers.Gemma3ForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.text_config.num_hidden_layers == 4
    assert model.config.vision_config.num_hidden_layers == 2
    assert torch.isfinite(model(torch.arange(6)[None]).logits).all()
