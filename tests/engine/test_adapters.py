"""Adapters of every kind as experts, against PEFT's own merge of the same files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergekit_lite
from tests.checkpoints import tiny_llama

LINEARS = ["q_proj", "k_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def llama(folder: Path, dtype: str, *, tied: bool = False, bias: bool = False) -> Path:
    """Write a tiny Llama, with biases of its own if wanted."""
    tiny_llama(folder, dtype=dtype, tied=tied)
    if not bias:
        return folder
    from transformers import AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text()) | {"attention_bias": True}
    (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    torch.manual_seed(5)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.5)
    model.save_pretrained(folder)
    return folder


def made(folder: Path, dtype: str, config: Any) -> Path:
    """Write a model of a config with random weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    return folder


def gpt2(folder: Path, dtype: str) -> Path:
    from transformers import GPT2Config

    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 8}
    return made(folder, dtype, GPT2Config(**shape))


def gpt_oss(folder: Path, dtype: str) -> Path:
    from transformers import GptOssConfig

    return made(
        folder,
        dtype,
        GptOssConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, vocab_size=32, num_local_experts=3,
            num_experts_per_tok=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
    )  # fmt: skip


def qwen_moe(folder: Path, dtype: str) -> Path:
    from transformers import Qwen3MoeConfig

    return made(
        folder,
        dtype,
        Qwen3MoeConfig(
            hidden_size=16, intermediate_size=24, moe_intermediate_size=12, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, head_dim=8, vocab_size=32,
            num_experts=3, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[],
            bos_token_id=1, eos_token_id=2,
        ),
    )  # fmt: skip


def mixtral(folder: Path, dtype: str) -> Path:
    from transformers import MixtralConfig

    return made(
        folder,
        dtype,
        MixtralConfig(
            hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, vocab_size=32, num_local_experts=3, num_experts_per_tok=2,
            bos_token_id=1, eos_token_id=2,
        ),
    )  # fmt: skip


def whisper(folder: Path, dtype: str) -> Path:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(1)
    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=32,
        num_mel_bins=4, max_source_positions=10, max_target_positions=10, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def adapt(base: Path, folder: Path, *, kind: str = "AutoModelForCausalLM", **config: Any) -> Any:
    """Train an adapter by hand, save it, and return the model with it."""
    import transformers
    from peft import LoraConfig, get_peft_model

    embeddings = config.pop("save_embedding_layers", False)
    model = getattr(transformers, kind).from_pretrained(base, dtype="auto")
    wrapped = get_peft_model(model, LoraConfig(**config), autocast_adapter_dtype=False)
    torch.manual_seed(7)
    for name, value in wrapped.named_parameters():
        if value.requires_grad and "magnitude" in name:
            value.data.mul_(1 + 0.5 * torch.rand_like(value))
        elif value.requires_grad:
            torch.nn.init.normal_(value, std=0.3)
    wrapped.save_pretrained(folder, save_embedding_layers=embeddings)
    return wrapped


def merged(tmp_path: Path, base: Path, lora: Path, **more: Any) -> dict[str, torch.Tensor]:
    """Return what this package makes of a base and one adapter."""
    recipe = {
        "base": str(base),
        "experts": {"one": {"lora": str(lora)}},
        "steps": ["task_arithmetic"],
        **more,
    }
    mergekit_lite.run(recipe, tmp_path / "out")
    return load_file(tmp_path / "out" / "model.safetensors")


def by_peft(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Return what PEFT makes of it, with the names that a file has."""
    model.merge_and_unload().save_pretrained(folder)
    return load_file(folder / "model.safetensors")


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (llama, {"r": 4, "target_modules": LINEARS}),
    "dora": (llama, {"r": 4, "use_dora": True, "use_rslora": True, "target_modules": LINEARS}),
    "dora_embedding": (llama, {"r": 4, "use_dora": True, "target_modules": ["embed_tokens"]}),
    "dora_conv1d": (
        gpt2,
        {"r": 2, "use_dora": True, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_fc"]},
    ),
    "kasa": (llama, {"r": 3, "kasa_config": {}, "target_modules": LINEARS}),
    "lora_bias": (
        lambda folder, dtype: llama(folder, dtype, bias=True),
        {"r": 4, "lora_alpha": 6, "lora_bias": True, "target_modules": ["q_proj", "o_proj"]},
    ),
    "bias_all": (
        lambda folder, dtype: llama(folder, dtype, bias=True),
        {"r": 4, "bias": "all", "target_modules": ["q_proj"]},
    ),
    "bias_lora_only": (
        lambda folder, dtype: llama(folder, dtype, bias=True),
        {"r": 4, "bias": "lora_only", "use_dora": True, "target_modules": ["v_proj"]},
    ),
    "tokens": (
        llama,
        {
            "r": 4,
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [3, 63, 0]},
        },
    ),
    "base_layer": (
        llama,
        {"r": 4, "target_modules": ["embed_tokens", "q_proj"], "save_embedding_layers": True},
    ),
    "conv": (
        whisper,
        {
            "kind": "WhisperForConditionalGeneration",
            "r": 4,
            "target_modules": ["conv1", "conv2", "fc1"],
        },
    ),
    "fused_transposed": (
        gpt_oss,
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            "rank_pattern": {"experts.down_proj": 3},
        },
    ),
    "fused_on_w1_w2_w3": (
        mixtral,
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    "fused_on_single": (
        qwen_moe,
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_equals_merging_by_peft(tmp_path: Path, case: str, dtype: str) -> None:
    make, config = CASES[case]
    base = make(tmp_path / "base", dtype)
    model = adapt(base, tmp_path / "lora", **config)
    got = merged(tmp_path, base, tmp_path / "lora")
    wanted = by_peft(model, tmp_path / "peft")
    before = load_file(base / "model.safetensors")
    assert got.keys() == before.keys()
    changed = [name for name in got if not torch.equal(got[name], before[name])]
    assert changed == [n for n in got if n in wanted and not torch.equal(wanted[n], before[n])]
    assert changed
    # PEFT rounds the delta, DoRA's lengths and the sum to the weight's dtype one after the other.
    rtol, atol = (1e-5, 2e-6) if dtype == "float32" else (3e-2, 1e-2)
    for name in changed:
        torch.testing.assert_close(got[name], wanted[name], rtol=rtol, atol=atol, msg=name)


def test_the_adapters_own_copy_of_the_base_is_what_its_delta_is_added_to(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", "float32")
    lora = tmp_path / "lora"
    adapt(base, lora, r=4, target_modules=["embed_tokens"], save_embedding_layers=True)
    stored = load_file(lora / "adapter_model.safetensors")
    prefix = "base_model.model.model.embed_tokens"
    stored[f"{prefix}.base_layer.weight"] += 1.0
    save_file(stored, lora / "adapter_model.safetensors")
    a, b = (stored[f"{prefix}.lora_embedding_{x}"] for x in "AB")
    wanted = stored[f"{prefix}.base_layer.weight"] + 2.0 * (b @ a).T
    got = merged(tmp_path, base, lora)["model.embed_tokens.weight"]
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "case", ["dora", "kasa", "dora_conv1d", "tokens", "conv", "fused_transposed"]
)
def test_the_same_bytes_whatever_the_tiles(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, config = CASES[case]
    base = make(tmp_path / "base", "float32")
    adapt(base, tmp_path / "lora", **config)
    whole = merged(tmp_path, base, tmp_path / "lora")
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: 4096)
    monkeypatch.setattr("mergekit_lite.engine.row.LEAST_TILE", 7)
    monkeypatch.setattr("mergekit_lite.engine.row.tile_and_block", lambda tile, width: (7, 2048))
    (tmp_path / "small").mkdir()
    small = merged(tmp_path / "small", base, tmp_path / "lora")
    assert all(torch.equal(whole[name], small[name]) for name in whole)


def test_a_weight_of_length_zero_is_reported_as_not_finite(tmp_path: Path) -> None:
    from mergekit_lite.errors import DataError

    base = llama(tmp_path / "base", "float32")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][3] = 0
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapt(base, tmp_path / "lora", r=4, use_dora=True, target_modules=["q_proj"])
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    stored[name][3] = 0
    save_file(stored, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(DataError, match="NaN or infinite"):
        merged(tmp_path, base, tmp_path / "lora")
