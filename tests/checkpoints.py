"""Makes checkpoints small enough to merge in milliseconds, shaped like the real ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def llama_shapes(
    layers: int, hidden: int, intermediate: int, vocab: int, tied: bool
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a Llama, in the order transformers lists them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": (hidden // 2, hidden),
            f"{prefix}self_attn.v_proj.weight": (hidden // 2, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}mlp.gate_proj.weight": (intermediate, hidden),
            f"{prefix}mlp.up_proj.weight": (intermediate, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, intermediate),
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def tiny_llama(
    folder: str | Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    intermediate: int = 64,
    vocab: int = 64,
    dtype: str = "bfloat16",
    shards: int = 1,
    tied: bool = True,
) -> Path:
    """Write a Llama that transformers loads: config, tokenizer files and weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in llama_shapes(layers, hidden, intermediate, vocab, tied).items():
        noise = torch.randn(shape, generator=generator)
        value = 1 + 0.1 * noise if name.endswith("norm.weight") else 0.1 * noise
        tensors[name] = value.to(getattr(torch, dtype))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": tied,
        "dtype": dtype,
        "vocab_size": vocab,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    write_tokenizer(folder, vocab)
    write_weights(folder, tensors, shards=shards)
    return folder


def perturbed(folder: str | Path, out: str | Path, *, seed: int, scale: float) -> Path:
    """Copy the checkpoint in `folder` to `out`, with noise of size `scale` on every float."""
    folder, out = Path(folder), Path(out)
    shutil.copytree(folder, out, dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for file in sorted(out.glob("*.safetensors")):
        tensors = load_file(file)
        for name, value in tensors.items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                tensors[name] = (value.float() + scale * noise).to(value.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    return out


def write_weights(
    folder: str | Path, tensors: Mapping[str, torch.Tensor], *, shards: int = 1
) -> Path:
    """Write `tensors` as `model.safetensors`, or as `shards` files of runs of names + index."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names, weight_map = list(tensors), dict[str, str]()
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


def read_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Read every tensor of every weight file of a checkpoint folder (or of one file)."""
    folder = Path(folder)
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Write a word-level tokenizer with `vocab` entries, as tokenizer.json and its config."""
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(3, vocab))]
    special = [
        {"id": number, "content": words[number], "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
        for number in range(3)
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": "<unk>",
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}\n")


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON text."""
    path.write_text(json.dumps(value, indent=2) + "\n")
