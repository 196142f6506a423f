"""Mixtral: a softmax over the chosen experts, no shared expert, every layer routed."""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Sizes


def _settings(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {
        "intermediate_size": sizes.width,
        "sliding_window": donor.window,
        "router_jitter_noise": 0.0,
    }


MIXTRAL = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    donors=("llama", "mistral", "phi3"),
    router="block_sparse_moe.gate.weight",
    experts={
        "gate": "block_sparse_moe.experts.{e}.w1.weight",
        "up": "block_sparse_moe.experts.{e}.w3.weight",
        "down": "block_sparse_moe.experts.{e}.w2.weight",
    },
    settings=_settings,
    window="uniform",
)
