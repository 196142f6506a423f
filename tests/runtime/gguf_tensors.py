"""The tensors of a routed checkpoint in the shapes and the order of rows that llama.cpp wants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float32]

NEIGHBOURS = ("mixtral", "granitemoe", "granitemoeshared")
"""Families whose heads llama.cpp rotates in pairs of neighbours, and transformers in halves."""
_EXPERT = re.compile(r"(?P<root>.+\.experts)\.(?P<expert>\d+)\.(?P<part>\w+)\.weight$")


def tensors(folder: Path, config: Any) -> Iterator[tuple[str, Array]]:
    """Yield every tensor, the experts of a layer as one."""
    stacks: dict[str, dict[int, Array]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, value in load_file(file).items():
            if match := _EXPERT.fullmatch(name):
                stack = stacks.setdefault(f"{match['root']}.{match['part']}.weight", {})
                stack[int(match["expert"])] = value
            else:
                yield from _single(name, value, config)
    for name, stack in stacks.items():
        yield name, np.stack([stack[expert] for expert in range(len(stack))])


def _single(name: str, value: Array, config: Any) -> Iterator[tuple[str, Array]]:
    if "input_linear" in name:
        yield from _halves(name, value)
    elif "e_score_correction_bias" in name:
        yield name.replace("correction_bias", "correction.bias"), value.reshape(-1)
    elif "kv_b_proj" in name:
        yield from _unfolded(name, value, config)
    elif config.model_type in NEIGHBOURS and re.search(r"\.[qk]_proj\.", name):
        query = ".q_proj." in name
        heads = config.num_attention_heads if query else config.num_key_value_heads
        blocks = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        yield name, blocks.swapaxes(1, 2).reshape(value.shape)
    else:
        yield name, value


def _halves(name: str, value: Array) -> Iterator[tuple[str, Array]]:
    """Yield gate and up of Granite's matrices, which hold both."""
    root = name.removesuffix(".input_linear.weight")
    gate, up = np.split(value, 2, axis=-2)
    if root.endswith("shared_mlp"):
        root = root.replace("shared_mlp", "mlp.shared_experts")
        yield f"{root}.gate_proj.weight", gate
        yield f"{root}.up_proj.weight", up
    else:
        yield f"{root}.experts.w1.weight", gate
        yield f"{root}.experts.w3.weight", up


def _unfolded(name: str, value: Array, config: Any) -> Iterator[tuple[str, Array]]:
    """Yield what unfolds DeepSeek's latent entries: keys, transposed, and values."""
    heads, keys = config.num_attention_heads, config.qk_nope_head_dim
    blocks = value.reshape(heads, keys + config.v_head_dim, -1)
    yield name.replace("kv_b_proj", "k_b_proj"), blocks[:, :keys].swapaxes(1, 2)
    yield name.replace("kv_b_proj", "v_b_proj"), blocks[:, keys:]
