"""GLM-4.5: sigmoid scores in fp32, a bias that counts in the choice alone, a shared expert.

All loaders honour its `norm_topk_prob`, so it is the safe way to GGUF for Qwen2 models.
"""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families._types import Family, Shared, Sizes, named


def grouped(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    """Return the entries of families that choose experts as DeepSeek does, without groups."""
    return {
        "intermediate_size": donor.width,
        "moe_intermediate_size": sizes.width,
        "n_shared_experts": sizes.shared_width // sizes.width,
        "first_k_dense_replace": len(sizes.dense_layers),
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
    }


def _settings(donor: Donor, sizes: Sizes) -> dict[str, Any]:
    return {
        **grouped(donor, sizes),
        "attention_bias": donor.bias == "qkv",
        "use_qk_norm": donor.dense.head_norm == "head",
        "partial_rotary_factor": donor.partial,
        # Draft layers for speculative decoding, of which there are no weights.
        "num_nextn_predict_layers": 0,
    }


GLM4_MOE = Family(
    name="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    donors=("llama", "mistral", "qwen2", "qwen3", "phi3"),
    router="mlp.gate.weight",
    experts=named("mlp.experts.{e}"),
    settings=_settings,
    correction="mlp.gate.e_score_correction_bias",
    shared=Shared(named("mlp.shared_experts"), needed=True),
    norm="flag",
    sigmoid=True,
    dense="first",
    bias=("none", "qkv"),
    head_norms=("none", "head"),
    partial=True,
)
