from __future__ import annotations

import pytest

from mergekit_lite.checkpoint.names import (
    ROLES,
    layer_count,
    layer_of,
    role_matches,
    role_of,
    stack_of,
)
from tests.checkpoints import llama_shapes


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.self_attn.q_proj.weight", 12),
        ("transformer.h.3.attn.c_attn.weight", 3),
        ("encoder.layer.7.attention.self.query.weight", 7),
        ("bert.encoder.layer.0.output.dense.bias", 0),
        ("blocks.5.mlp.fc1.weight", 5),
        ("visual.blocks.31.attn.qkv.weight", 31),
        ("gpt_neox.layers.9.mlp.dense_h_to_4h.weight", 9),
        ("model.language_model.layers.20.mlp.up_proj.weight", 20),
        ("model.layers.3.mlp.experts.17.up_proj.weight", 3),
        ("decoder.block.2.layer.1.EncDecAttention.q.weight", 2),
        ("model.embed_tokens.weight", None),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
        ("h4.weight", None),
    ],
)
def test_layer_is_the_first_number_of_the_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_stack_is_what_stands_before_the_layer() -> None:
    assert stack_of("model.layers.3.mlp.experts.17.w1.weight") == "model.layers"
    assert stack_of("model.norm.weight") == ""


def test_layers_of_the_language_model_are_counted_not_those_of_its_vision_tower() -> None:
    text = [f"model.language_model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    vision = [f"model.visual.blocks.{i}.attn.qkv.weight" for i in range(9)]
    assert layer_count([*text, *vision, "lm_head.weight"]) == 4
    assert layer_count(vision) == 9
    assert layer_count(["model.embed_tokens.weight"]) == 0


@pytest.mark.parametrize(
    ("name", "role"),
    [
        # PEFT adapters
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "attention.q"),
        ("base_model.model.model.layers.3.mlp.up_proj.lora_B.default.weight", "mlp.up"),
        ("base_model.model.model.layers.3.mlp.down_proj.lora_magnitude_vector", "mlp.down"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.lm_head.lora_A.weight", "head"),
        # Llama, Qwen, Gemma, Phi
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "norm"),
        ("model.layers.0.self_attn.q_proj.weight", "attention.q"),
        ("model.layers.0.self_attn.q_proj.bias", "attention.q"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.self_attn.qkv_proj.weight", "attention.other"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "attention.other"),
        ("model.layers.0.pre_feedforward_layernorm.weight", "norm"),
        ("model.layers.0.mlp.gate_proj.weight", "mlp.gate"),
        ("model.layers.0.mlp.gate_up_proj.weight", "mlp.other"),
        ("layers.0.mlp.down_proj.weight", "mlp.down"),
        # GPT-2, GPT-NeoX, OPT, BLOOM
        ("wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("h.0.ln_1.weight", "norm"),
        ("transformer.ln_f.bias", "norm"),
        ("h.0.attn.c_attn.weight", "attention.other"),
        ("h.0.attn.c_proj.weight", "attention.o"),
        ("h.0.attn.bias", "attention.other"),
        ("h.0.mlp.c_fc.weight", "mlp.up"),
        ("h.0.mlp.c_proj.weight", "mlp.down"),
        ("gpt_neox.embed_in.weight", "embedding"),
        ("embed_out.weight", "head"),
        ("gpt_neox.layers.1.attention.dense.weight", "attention.o"),
        ("gpt_neox.layers.1.mlp.dense_4h_to_h.weight", "mlp.down"),
        ("model.decoder.layers.1.fc1.weight", "mlp.up"),
        ("model.decoder.embed_positions.weight", "embedding"),
        # BERT, T5
        ("bert.embeddings.word_embeddings.weight", "embedding"),
        ("bert.embeddings.LayerNorm.weight", "norm"),
        ("encoder.layer.0.attention.self.query.weight", "attention.q"),
        ("encoder.layer.0.attention.output.dense.weight", "attention.o"),
        ("encoder.layer.0.intermediate.dense.weight", "mlp.up"),
        ("encoder.layer.0.output.dense.weight", "mlp.down"),
        ("classifier.weight", "head"),
        ("shared.weight", "embedding"),
        ("decoder.block.0.layer.0.SelfAttention.o.weight", "attention.o"),
        ("decoder.block.0.layer.2.DenseReluDense.wi_0.weight", "mlp.gate"),
        ("decoder.block.0.layer.2.DenseReluDense.wo.weight", "mlp.down"),
        # routed
        ("model.layers.0.block_sparse_moe.gate.weight", "router"),
        ("model.layers.0.block_sparse_moe.experts.3.w2.weight", "mlp.down"),
        ("model.layers.0.mlp.gate.weight", "router"),
        ("model.layers.0.mlp.gate.e_score_correction_bias", "router"),
        ("model.layers.0.mlp.router.weight", "router"),
        ("model.layers.0.mlp.shared_expert_gate.weight", "router"),
        ("model.layers.0.mlp.experts.5.gate_proj.weight", "mlp.gate"),
        ("model.layers.0.self_attn.kv_b_proj.weight", "attention.other"),
        ("model.layers.0.self_attn.q_a_proj.weight", "attention.q"),
        # elsewhere
        ("visual.blocks.0.attn.proj.weight", "attention.o"),
        ("model.vision_tower.embeddings.patch_embedding.weight", "embedding"),
        ("model.layers.0.mixer.A_log", "other"),
        ("whatever", "other"),
        ("0", "other"),
    ],
)
def test_roles_of_the_naming_habits_in_use(name: str, role: str) -> None:
    assert role_of(name) == role
    assert role in ROLES


def test_every_tensor_of_a_llama_has_a_role() -> None:
    names = llama_shapes(2, 8, 16, 16, tied=False)
    assert "other" not in {role_of(name) for name in names}


def test_a_role_covers_what_is_below_it() -> None:
    assert role_matches("attention", "attention.q")
    assert role_matches("attention.q", "attention.q")
    assert not role_matches("attention.q", "attention.k")
    assert not role_matches("mlp", "attention.q")
    assert not role_matches("nor", "norm")
