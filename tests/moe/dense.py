"""Tiny dense models of every family that can be a donor, and how two models differ."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
_LATENT = {
    "first_k_dense_replace": 3,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "num_key_value_heads": 4,
}
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "phi3": {"pad_token_id": 0},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.2,
    },
    "olmo2": {"pad_token_id": 0, "eos_token_id": 1},
    "ernie4_5": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "deepseek_v2": _LATENT,
    "deepseek_v3": {**_LATENT, "num_nextn_predict_layers": 0},
}


def make(family: str, folder: Path, *, seed: int = 0, dtype: str = "float32", **own: Any) -> Path:
    """Write a random dense model of a family."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SIZES, **OWN[family], **own})
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a model, refusing one that lacks weights or has others."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=dtype
    )
    wrong = {key: value for key, value in info.items() if value}
    assert not wrong, wrong
    return model.eval()


@cache
def tokens() -> torch.Tensor:
    """Return two texts of 40 tokens."""
    return torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(7))


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return what a model says to these tokens."""
    with torch.no_grad():
        return load(folder, dtype)(tokens()).logits


def apart(left: Path, right: Path) -> float:
    """Return the largest difference between the logits of two models."""
    return float((logits(left) - logits(right)).abs().max())


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of a model on disk."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {
                name: tuple(opened.get_slice(name).get_shape()) for name in set(opened.keys())
            }
    return found


def tensor(folder: Path, name: str) -> torch.Tensor:
    """Return a tensor of a model on disk."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            if name in set(opened.keys()):
                return opened.get_tensor(name)
    raise KeyError(name)


def config(folder: Path) -> dict[str, Any]:
    """Return a model's config."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
