"""Writes a small routed checkpoint as a GGUF file in fp32, for llama.cpp to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import AutoConfig

from tests.runtime.gguf_tensors import tensors

ARCHITECTURES: dict[str, gguf.MODEL_ARCH] = {
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "olmoe": gguf.MODEL_ARCH.OLMOE,
    "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
    "dots1": gguf.MODEL_ARCH.DOTS1,
    "granitemoe": gguf.MODEL_ARCH.GRANITE_MOE,
    "granitemoeshared": gguf.MODEL_ARCH.GRANITE_MOE,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "ernie4_5_moe": gguf.MODEL_ARCH.ERNIE4_5_MOE,
    "hunyuan_v1_moe": gguf.MODEL_ARCH.HUNYUAN_MOE,
}


def write(folder: Path, file: Path) -> Path:
    """Write the checkpoint of a folder as GGUF; its tokens have no names."""
    config = AutoConfig.from_pretrained(folder)
    arch = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    _sizes(writer, config)
    _heads(writer, config)
    _experts(writer, config)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, value in tensors(folder, config):
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise KeyError(name)
        writer.add_tensor(known, np.ascontiguousarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    if config.model_type.startswith("granitemoe"):
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def _heads(writer: gguf.GGUFWriter, config: Any) -> None:
    if config.model_type.startswith("deepseek"):
        # Keys and values are one head of latent entries, which each query head unfolds for itself.
        writer.add_head_count_kv(1)
        writer.add_q_lora_rank(config.q_lora_rank)
        writer.add_kv_lora_rank(config.kv_lora_rank)
        writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
        writer.add_value_length(config.kv_lora_rank)
        writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
        writer.add_value_length_mla(config.v_head_dim)
        writer.add_rope_dimension_count(config.qk_rope_head_dim)
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    part = config.rope_parameters.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(head * part))


def _experts(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write how many experts there are, and the entries by which families weigh them."""
    said = config.to_dict()

    def first(*keys: str) -> Any:
        found = next((said[key] for key in keys if said.get(key)), 0)
        return found[0] if isinstance(found, list) else found

    count = first("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    shared = first("n_shared_experts", "moe_num_shared_experts", "num_shared_expert")
    width = first("moe_intermediate_size") or config.intermediate_size
    writer.add_expert_count(count)
    writer.add_expert_used_count(first("num_experts_per_tok", "moe_k", "moe_topk"))
    writer.add_expert_feed_forward_length(width)
    family = config.model_type
    if family in ("glm4_moe", "dots1", "deepseek_v2", "deepseek_v3"):
        writer.add_expert_shared_count(shared)
        writer.add_leading_dense_block_count(said.get("first_k_dense_replace", 0))
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        kinds = gguf.ExpertGatingFuncType
        soft = family == "deepseek_v2"
        writer.add_expert_gating_func(kinds.SOFTMAX if soft else kinds.SIGMOID)
        if family == "glm4_moe":
            writer.add_nextn_predict_layers(0)
    elif family == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    elif family == "granitemoeshared":
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    elif family == "hunyuan_v1_moe":
        writer.add_expert_shared_count(shared)
        writer.add_expert_shared_feed_forward_length(config.intermediate_size)
    elif family == "ernie4_5_moe":
        writer.add_interleave_moe_layer_step(config.moe_layer_interval)
        writer.add_leading_dense_block_count(config.moe_layer_start_index)
        writer.add_expert_shared_count(shared)
        if shared:
            writer.add_expert_shared_feed_forward_length(width * shared)
