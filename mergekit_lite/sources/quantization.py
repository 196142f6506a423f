"""Tells quantised checkpoints, whose stored numbers are codes, from plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.checkpoint import TensorInfo

# Tensors that stand beside codes: packed weights, scales, zero points, lookup state.
_CODED = (
    ".weight_packed", ".qweight", ".qzeros", ".g_idx", ".weight_scale", ".weight_scale_inv",
    ".weight_zero_point", ".absmax", ".quant_map", "_blocks", ".SCB",
)  # fmt: skip


def quantization_of(config: Mapping[str, Any] | None, tensors: Mapping[str, TensorInfo]) -> str:
    """Return the name of the format if a checkpoint is quantised, and what gave it away.

    Empty for plain weights. For example ``gptq (config.json)`` or
    ``fp8 (`model.layers.0.mlp.up_proj.weight` is F8_E4M3)``.
    """
    for scope in (config or {}, *_nested(config or {})):
        for key in ("quantization_config", "compression_config"):
            if isinstance(settings := scope.get(key), Mapping) and settings:
                return f"{settings.get('quant_method') or 'quantised'} (config.json)"
    for name, info in tensors.items():
        if info.dtype.startswith("F8_"):
            return f"fp8 (`{name}` is {info.dtype})"
        if name.endswith(_CODED) or ".quant_state." in name:
            return f"packed (`{name}`)"
    return ""


def _nested(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [value for value in config.values() if isinstance(value, Mapping)]
