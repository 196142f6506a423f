"""Qwen2-MoE and Qwen3-MoE: a softmax over all experts, normalised where the config says so.

llama.cpp reads no such entry: it never normalises a Qwen2-MoE and always a Qwen3-MoE.
"""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Shared, Sizes, named


def _settings(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {
        "intermediate_size": donor.width,
        "moe_intermediate_size": sizes.width,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(sizes.dense_layers),
        "use_sliding_window": any(donor.windows),
        "sliding_window": next(filter(None, donor.windows), None),
    }


def _qwen2(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    kinds = ["sliding_attention" if window else "full_attention" for window in donor.windows]
    return {
        **_settings(donor, sizes),
        "shared_expert_intermediate_size": sizes.shared_width,
        "qkv_bias": donor.bias == "qkv",
        "max_window_layers": donor.get("max_window_layers") or sizes.layers,
        "layer_types": kinds,
    }


def _qwen3(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {**_settings(donor, sizes), "attention_bias": donor.bias == "all"}


QWEN2_MOE = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    donors=("qwen2",),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_qwen2,
    shared=Shared(
        named("mlp.shared_expert"),
        sigmoid="mlp.shared_expert_gate.weight",
        needed=True,
        multiple=False,
    ),
    norm="flag",
    dense="any",
    bias=("none", "qkv"),
    window="layers",
)

QWEN3_MOE = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    donors=("qwen3",),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_qwen3,
    norm="flag",
    dense="any",
    bias=("none", "all"),
    head_norms=("head",),
    window="uniform",
)
