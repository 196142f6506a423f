"""Granite MoE, with and without a shared expert: all experts of a layer are one tensor on disk."""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Shared, Sizes


def _settings(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    own = {
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        # Other families divide by the root of the head's width without saying so.
        "attention_multiplier": donor.head_dim**-0.5,
    }
    if donor.model_type == "granite":
        own = {key: donor.get(key) for key in own}
    return {"intermediate_size": sizes.width, "attention_bias": donor.bias == "all", **own}


def _shared(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {**_settings(donor, sizes), "shared_intermediate_size": sizes.shared_width}


_DONORS = ("granite", "llama", "mistral", "phi3")
_ROUTER = "block_sparse_moe.router.layer.weight"
_EXPERTS = {
    "gate_up": "block_sparse_moe.input_linear.weight",
    "down": "block_sparse_moe.output_linear.weight",
}

GRANITEMOE = Family(
    name="granitemoe",
    architecture="GraniteMoeForCausalLM",
    donors=_DONORS,
    router=_ROUTER,
    experts=_EXPERTS,
    settings=_settings,
    bias=("none", "all"),
)

GRANITEMOESHARED = Family(
    name="granitemoeshared",
    architecture="GraniteMoeSharedForCausalLM",
    donors=_DONORS,
    router=_ROUTER,
    experts=_EXPERTS,
    settings=_shared,
    shared=Shared(
        {
            "gate_up": "shared_mlp.input_linear.weight",
            "down": "shared_mlp.output_linear.weight",
        },
        multiple=False,
    ),
    bias=("none", "all"),
)
