"""Which dense family a carved model came from, and the config that it has there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.moe.dense.carved import Carving
from mergekit_lite.plan import configs

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
}
_TWINS = {
    "mixtral": "mistral",
    "qwen2_moe": "qwen2",
    "qwen3_moe": "qwen3",
    "dots1": "qwen3",
    "granitemoe": "granite",
    "granitemoeshared": "granite",
    "flex_olmo": "olmo2",
    "ernie4_5_moe": "ernie4_5",
    "hunyuan_v1_moe": "hunyuan_v1_dense",
}
_BY_ATTENTION = {(False, False): "llama", (False, True): "qwen2", (True, False): "qwen3"}
"""Of GLM-4.5, by whether it normalises queries and keys, and has biases."""
_GONE = (
    "num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "moe_num_experts",
    "num_experts_per_tok", "moe_topk", "moe_k", "moe_intermediate_size", "norm_topk_prob",
    "decoder_sparse_step", "mlp_only_layers", "output_router_logits", "router_aux_loss_coef",
    "router_jitter_noise", "first_k_dense_replace", "routed_scaling_factor", "n_group",
    "topk_group", "topk_method", "scoring_func", "num_nextn_predict_layers", "use_qk_norm",
    "shared_expert_intermediate_size", "shared_intermediate_size", "num_shared_expert",
    "moe_num_shared_experts", "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval",
    "moe_norm_min", "use_mixed_mlp_moe", "routed_layers", "router", "auto_map", "top_p",
    "num_null_experts", "skip_betas", "expert_map",
)  # fmt: skip


def twin_config(
    config: Mapping[str, Any], carving: Carving
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the entries of the dense model's config that change, and those that go.

    Args:
        config: of the carved model, which is written out in full.
        carving: how it was carved.
    """
    own = {"intermediate_size": carving.width}
    name = _twin(config, carving.family.name)
    if name is None:
        # Its own family, in which layers may be dense.
        return {**own, "first_k_dense_replace": configs.value(config, "num_hidden_layers")}, ()
    changed = {**own, "model_type": name, "architectures": [_ARCHITECTURES[name]]}
    return changed, tuple(key for key in _GONE if key in config)


def _twin(config: Mapping[str, Any], family: str) -> str | None:
    if family == "routed":
        return str(config["model_type"]).removeprefix("routed_")
    if family != "glm4_moe":
        return _TWINS.get(family)
    rope = config.get("rope_parameters") or {}
    part = config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0))
    kinds = bool(config.get("use_qk_norm")), bool(config.get("attention_bias"))
    return _BY_ATTENTION.get(kinds) if part in (None, 1.0) else None
