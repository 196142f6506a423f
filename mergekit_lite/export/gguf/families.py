"""Families that are written as GGUF, and what their configs say in the words of llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCRIPT = "llama.cpp's `convert_hf_to_gguf.py` knows more"


@dataclass(frozen=True)
class Family:
    """How llama.cpp runs a family.

    Attributes:
        arch: its name for the architecture.
        neighbours: heads are rotated in pairs of neighbours, where transformers takes halves.
        experts: entry of the config that counts experts; empty for a dense family.
    """

    arch: str
    neighbours: bool = False
    experts: str = ""


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", neighbours=True),
    "mistral": Family("llama", neighbours=True),
    "mixtral": Family("llama", neighbours=True, experts="num_local_experts"),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "qwen2_moe": Family("qwen2moe", experts="num_experts"),
    "qwen3_moe": Family("qwen3moe", experts="num_experts"),
    "olmoe": Family("olmoe", experts="num_experts"),
}
"""`model_type` -> how it is run."""

_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "head_count": "num_attention_heads",
    "vocab_size": "vocab_size",
}
_SCALINGS = ("default", "linear", "llama3", "yarn")


class ConfigError(ValueError):
    """A config that cannot be said in GGUF; the text says what of it."""


def head_size(config: Mapping[str, Any]) -> int:
    """Return the entries of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def key_heads(config: Mapping[str, Any]) -> int:
    """Return how many heads keys and values have."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def add_metadata(writer: Any, family: Family, config: Mapping[str, Any]) -> None:
    """Tell a `GGUFWriter` what a config says.

    Raises:
        ConfigError: an entry is missing, or has no like in GGUF.
    """
    missing = [key for key in (*_SIZES.values(), "rms_norm_eps") if config.get(key) is None]
    if missing:
        raise ConfigError(f"config.json lacks `{missing[0]}`")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"`hidden_act: {config['hidden_act']}` is not what llama.cpp computes")
    for name, key in _SIZES.items():
        getattr(writer, f"add_{name}")(int(config[key]))
    writer.add_head_count_kv(
        int(config.get("num_key_value_heads") or config["num_attention_heads"])
    )
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    size = head_size(config)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    _add_rotation(writer, config)
    if family.experts:
        _add_experts(writer, family, config)


def rotation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how positions turn heads: `rope_type`, `rope_theta` and what scales it.

    Raises:
        ConfigError: they are scaled in a way that is not known here.
    """
    said = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = said.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = said.get("rope_type") or said.get("type") or "default"
    if kind not in _SCALINGS or float(said.get("partial_rotary_factor") or 1) != 1:
        raise ConfigError(f"positions of type `{kind}` are not written")
    return {**said, "rope_theta": float(theta), "rope_type": kind}


def _add_rotation(writer: Any, config: Mapping[str, Any]) -> None:
    import gguf

    said = rotation(config)
    writer.add_rope_freq_base(said["rope_theta"])
    if said["rope_type"] in ("linear", "yarn"):
        kind = said["rope_type"].upper()
        writer.add_rope_scaling_type(gguf.RopeScalingType[kind])
        writer.add_rope_scaling_factor(float(said["factor"]))
    if said["rope_type"] == "yarn" and (length := said.get("original_max_position_embeddings")):
        writer.add_rope_scaling_orig_ctx_len(int(length))


def rotation_factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Return what Llama 3 divides each frequency by; None where it divides by nothing."""
    said = rotation(config)
    if said["rope_type"] != "llama3":
        return None
    factor, low, high = (
        float(said[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    length, size = float(said["original_max_position_embeddings"]), head_size(config)
    found = []
    for index in range(0, size, 2):
        turns = length / (2 * math.pi * said["rope_theta"] ** (index / size))
        part = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - part) / factor + part))
    return np.array(found, np.float32)


def _add_experts(writer: Any, family: Family, config: Mapping[str, Any]) -> None:
    writer.add_expert_count(int(config[family.experts]))
    writer.add_expert_used_count(int(config["num_experts_per_tok"]))
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    writer.add_expert_feed_forward_length(int(width))
    if shared := config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(int(shared))
