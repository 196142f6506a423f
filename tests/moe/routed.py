"""Tiny routed models, and what they would say if some experts were never chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.moe.dense import SIZES, load, tokens

FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {
        "num_experts": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "head_dim": 8,
    },
    "glm4_moe": {
        "n_routed_experts": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "num_nextn_predict_layers": 0,
    },
    "granitemoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
}


def make(family: str, folder: Path, *, seed: int = 0, **own: Any) -> Path:
    """Write a random routed model of eight experts, two for each token."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **own})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    for name, buffer in model.named_buffers():
        if "e_score_correction_bias" in name:
            torch.nn.init.normal_(buffer, 0.0, 0.1)
    model.save_pretrained(folder)
    return folder


def routers(model: PreTrainedModel) -> dict[int, Any]:
    """Return the router of each routed layer."""
    found = {}
    for layer, block in enumerate(model.model.layers):
        network = getattr(block, "mlp", None) or block.block_sparse_moe
        router = getattr(network, "gate", None) or getattr(network, "router", None)
        if hasattr(network, "experts"):
            found[layer] = router
    return found


def masked_logits(folder: Path, kept: Mapping[int, tuple[int, ...]]) -> torch.Tensor:
    """Return what a model says when its routers cannot choose any other experts than these."""
    model = load(folder)
    for layer, router in routers(model).items():
        gone = [e for e in range(8) if e not in kept[layer]]
        router.forward = masked_router(router, gone)
    with torch.no_grad():
        return model(tokens()).logits


def masked_router(router: Any, gone: list[int]) -> Callable[[torch.Tensor], Any]:
    bias = getattr(router, "e_score_correction_bias", None)

    def forward(hidden: torch.Tensor) -> Any:
        rows = hidden.reshape(-1, hidden.shape[-1])
        scores = rows @ router.weight.T
        choice = scores if bias is None else scores.sigmoid() + bias
        choice = choice.index_fill(1, torch.tensor(gone, dtype=torch.long), -torch.inf)
        chosen = choice.topk(2, dim=-1).indices
        if bias is None:
            weights = choice.softmax(-1).gather(1, chosen)
        else:
            weights = scores.sigmoid().gather(1, chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        return scores, weights * getattr(router, "routed_scaling_factor", 1.0), chosen

    return forward
