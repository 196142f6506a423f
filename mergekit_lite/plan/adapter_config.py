"""What PEFT needs to know of an adapter that is written: names, and `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PREFIX = "base_model.model."
WEIGHT_FILE = "adapter_model.safetensors"


def lora_config(
    modules: Mapping[str, int],
    base: Mapping[str, Any],
    *,
    rank: int,
    patterns: Mapping[str, int],
    saved: Sequence[str],
    base_model: str,
    task_type: str | None,
    transposed: bool = False,
    bias: str = "none",
    tokens: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return what PEFT needs to know of an adapter whose every pair of factors has scale 1.

    Args:
        modules: rank of each module's factors.
        base: the base's tensors, or their names.
        rank: that most modules have.
        patterns: the ranks that differ.
        saved: modules that the adapter holds whole.
        base_model: what the adapter belongs to.
        task_type: PEFT's name for what the base does.
        transposed: the adapted weights are stored (in x out).
        bias: which biases it holds: `none`, `lora_only` (of adapted modules) or `all`.
        tokens: embedding -> the rows that it holds.
    """
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": dict(patterns),
        "alpha_pattern": dict(patterns),
        "target_modules": targets(modules, base),
        "modules_to_save": list(saved) or None,
        "fan_in_fan_out": transposed,
        "bias": bias,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        **({"trainable_token_indices": {k: list(v) for k, v in tokens.items()}} if tokens else {}),
    }


def targets(modules: Mapping[str, int], base: Mapping[str, Any]) -> list[str]:
    """Return the names by which PEFT finds the modules: their last parts, where that is enough.

    Modules that share their last part with one that is not adapted are named in full.
    """
    ends: dict[str, list[str]] = {}
    for name in base:
        if name.endswith(".weight"):
            module = name.removesuffix(".weight")
            ends.setdefault(module.rpartition(".")[2], []).append(module)
    found: dict[str, None] = {}
    for module in modules:
        end = module.rpartition(".")[2]
        alone = all(other in modules for other in ends.get(end, [])) and not end.isdigit()
        found[end if alone else module] = None
    return sorted(found)
