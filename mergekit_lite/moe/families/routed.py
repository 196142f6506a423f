"""Routers that no stock model has: the dense model's own class, with code beside the weights.

transformers runs it with `trust_remote_code=True`; llama.cpp cannot, and vLLM at best through its
backend for transformers.
"""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Shared, Sizes, named
from mergekit_lite.recipe.schema import Routing

EXACT = {part: f"mlp.gate.{part}" for part in ("gate_weight", "up_weight", "bias", "scale")}
"""Names of what the router of a carved layer is made of."""
NULLS = "mlp.gate.null_weight"
"""Name of the rows of choices that do nothing."""
_OWN = (
    "architectures", "model_type", "tie_word_embeddings", "transformers_version", "dtype",
    "torch_dtype", "rope_theta", "rope_scaling", "rope_parameters", "_name_or_path", "auto_map",
)  # fmt: skip


def _settings(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    # Everything that the donor's own class reads stays as it is.
    return {
        **{key: value for key, value in donor.config.items() if key not in _OWN},
        "model_type": f"routed_{donor.model_type}",
        "intermediate_size": donor.width,
        "moe_intermediate_size": sizes.width,
        "shared_intermediate_size": sizes.shared_width,
        "routed_layers": list(sizes.routed),
        "norm_topk_prob": True,
        "auto_map": {
            "AutoConfig": "configuration_routed.RoutedConfig",
            "AutoModelForCausalLM": "modeling_routed.RoutedForCausalLM",
        },
    }


def routing_of(routing: Routing, layers: int) -> dict[str, Any]:
    """Return the entries of the config that say what routers do."""
    skip = routing.skip
    return {
        "top_p": routing.top_p,
        "num_null_experts": routing.null_experts,
        "skip_betas": [skip] * layers if isinstance(skip, float | int) else skip and list(skip),
    }


ROUTED = Family(
    name="routed",
    architecture="RoutedForCausalLM",
    donors=("llama", "mistral", "qwen2", "qwen3"),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_settings,
    shared=Shared(named("mlp.shared_experts"), multiple=False),
    dense="any",
    bias=("none", "qkv", "all"),
    head_norms=("none", "head"),
    window="layers",
    partial=True,
)
