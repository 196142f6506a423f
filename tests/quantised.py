"""Quantises tensors as the formats do, and says in plain numpy what the result stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def spread(scale: Tensor, shape: tuple[int, ...], block: tuple[int, int]) -> np.ndarray:
    """Return the scale of every entry of a tensor whose last two dimensions have blocks."""
    values = scale.float().numpy().reshape(*shape[:-2], *scale.shape[-2:])
    return values.repeat(block[0], -2).repeat(block[1], -1)[..., : shape[-2], : shape[-1]]


def fp8_blocks(
    name: str, weight: Tensor, block: tuple[int, int] = (128, 128), dtype: str = "float8_e4m3fn"
) -> tuple[Tensors, np.ndarray]:
    """Return a weight in fp8 with a scale for each block, ragged at the edges, and its value."""
    rows, width = weight.shape[-2:]
    grid = (ceil(rows / block[0]), ceil(width / block[1]))
    scale = torch.rand(*weight.shape[:-2], *grid) * 0.01 + 1e-3
    each = torch.from_numpy(spread(scale, tuple(weight.shape), block).copy())
    codes = (weight.float() / each).to(getattr(torch, dtype))
    value = codes.float().numpy() * each.numpy()
    return {name: codes, f"{name}_scale_inv": scale}, value


def fp8_whole(name: str, weight: Tensor, suffix: str = "_scale") -> tuple[Tensors, np.ndarray]:
    """Return a weight in fp8 with one scale."""
    scale = weight.float().abs().max() / 448
    codes = (weight.float() / scale).to(torch.float8_e4m3fn)
    return {name: codes, name + suffix: scale}, codes.float().numpy() * scale.numpy()


def packed(codes: Tensor, bits: int) -> Tensor:
    """Pack signed codes along the rows into words of 32 bits, the first in the lowest bits."""
    per_word = 32 // bits
    unsigned = (codes.numpy().astype(np.int64) + (1 << (bits - 1))).astype(np.uint64)
    missing = -unsigned.shape[-1] % per_word
    padded = np.pad(unsigned, [(0, 0)] * (unsigned.ndim - 1) + [(0, missing)])
    words = padded.reshape(*padded.shape[:-1], -1, per_word)
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    return torch.from_numpy((words << shifts).sum(-1).astype(np.uint32).view(np.int32).copy())


def pack_quantised(
    name: str, shape: tuple[int, int], bits: int, group: int, *, zero: bool, order: bool
) -> tuple[Tensors, np.ndarray]:
    """Return random integers in groups, packed as compressed-tensors packs them."""
    rows, width = shape
    groups = ceil(width / group)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = torch.randint(low, high + 1, shape)
    scale = (torch.rand(rows, groups) * 0.01 + 1e-3).bfloat16()
    column = torch.arange(width) // group
    tensors = {
        f"{name}_packed": packed(codes, bits),
        f"{name}_scale": scale,
        f"{name}_shape": torch.tensor(shape),
    }
    if order:
        column = column[torch.randperm(width)]
        tensors[f"{name}_g_idx"] = column.to(torch.int32)
    numbers = codes.float()
    if zero:
        zeros = torch.randint(low, high + 1, (rows, groups))
        tensors[f"{name}_zero_point"] = packed(zeros.T.contiguous(), bits).T.contiguous()
        numbers = numbers - zeros[:, column]
    return tensors, (numbers * scale.float()[:, column]).numpy()


def mxfp4_experts(name: str, experts: int, rows: int, blocks: int) -> tuple[Tensors, np.ndarray]:
    """Return random 4-bit floats in blocks of 32, as gpt-oss stores its experts."""
    codes = torch.randint(0, 256, (experts, rows, blocks, 16), dtype=torch.uint8)
    scale = torch.randint(110, 130, (experts, rows, blocks), dtype=torch.uint8)
    bytes_ = codes.numpy()
    numbers = np.stack([FP4[bytes_ & 15], FP4[bytes_ >> 4]], -1).reshape(experts, rows, blocks, 32)
    value = np.ldexp(numbers, scale.numpy().astype(np.int64)[..., None] - 127)
    value = value.reshape(experts, rows, blocks * 32).transpose(0, 2, 1)
    return {f"{name}_blocks": codes, f"{name}_scales": scale}, np.ascontiguousarray(value)


def group_config(bits: int, group: int, **more: Any) -> dict[str, Any]:
    """Return what config.json says of integers of a width in groups."""
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": group, **more}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": groups}  # fmt: skip


def save(folder: Path, tensors: Mapping[str, Tensor], settings: Any = None, **config: Any) -> Path:
    """Write a checkpoint of one file with its config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    if settings is not None:
        config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def fp8_copy(folder: Path, out: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Write a model's copy whose layers are in fp8 blocks; return what all tensors stand for."""
    stored: Tensors = {}
    values: dict[str, np.ndarray] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if ".layers." in name and weight.ndim == 2:
            made, values[name] = fp8_blocks(name, weight, (16, 16))
            stored |= made
        else:
            stored[name], values[name] = weight, weight.float().numpy()
    out.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    save(out, stored, settings, **config)
    return out, values
