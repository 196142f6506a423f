"""Checkpoints of real headers over holes: all that a plan looks at, and no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint import DTYPE_BYTES, header_text
from mergekit_lite.checkpoint.index import index_text, shard_names
from mergekit_lite.recipe import Recipe, load

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def llama(
    layers: int = 2,
    *,
    hidden: int = 32,
    intermediate: int = 64,
    vocab: int = 64,
    dtype: str = "BF16",
    tied: bool = False,
) -> Tensors:
    """Name -> (dtype, shape) of a Llama, a head unless tied."""
    found: Tensors = {"model.embed_tokens.weight": (dtype, (vocab, hidden))}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found[f"{prefix}self_attn.q_proj.weight"] = (dtype, (hidden, hidden))
        found[f"{prefix}mlp.up_proj.weight"] = (dtype, (intermediate, hidden))
        found[f"{prefix}mlp.down_proj.weight"] = (dtype, (hidden, intermediate))
        found[f"{prefix}input_layernorm.weight"] = (dtype, (hidden,))
    found["model.norm.weight"] = (dtype, (hidden,))
    if not tied:
        found["lm_head.weight"] = (dtype, (vocab, hidden))
    return found


def llama_config(
    layers: int = 2,
    *,
    hidden: int = 32,
    intermediate: int = 64,
    vocab: int = 64,
    tied: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Return the config that goes with `llama`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        **more,
    }


def write(
    folder: Path,
    tensors: Tensors | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    shards: int = 1,
) -> Path:
    """Write a checkpoint folder, in place of one that was there; a small Llama by default."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = llama() if tensors is None else tensors
    config = llama_config() if config is None else config
    for stale in folder.glob("*.safetensors*"):
        stale.unlink()
    names, weight_map = list(tensors), {}
    for number, file in enumerate(shard_names(shards)):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        hollow(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        total = sum(prod(shape) * DTYPE_BYTES[dtype] for dtype, shape in tensors.values())
        (folder / "model.safetensors.index.json").write_text(index_text(weight_map, total, 1))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def hollow(file: Path, tensors: Tensors) -> None:
    """Write one safetensors file whose data is a hole."""
    listed = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    text, _, nbytes = header_text(listed, {"format": "pt"})
    with open(file, "wb") as stream:
        stream.write(len(text.encode()).to_bytes(8, "little") + text.encode())
        stream.truncate(nbytes)


def write_adapter(folder: Path, shapes: Mapping[str, tuple[int, int]], rank: int = 4) -> Path:
    """Write a LoRA adapter of the modules in `shapes` (module -> shape of its weight)."""
    folder.mkdir(parents=True)
    tensors: Tensors = {}
    for module, (tall, wide) in shapes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = ("F32", (rank, wide))
        tensors[f"base_model.model.{module}.lora_B.weight"] = ("F32", (tall, rank))
    hollow(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in shapes}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def recipe(folder: Path, text: str) -> Recipe:
    """Load a recipe file with this text, written beside the models in `folder`."""
    file = folder / "recipe.yaml"
    file.write_text(text)
    return load(file)
