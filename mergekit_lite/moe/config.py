"""The config of a routed model: every entry written out, none left to a default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.moe.assembly import Assembly
from mergekit_lite.moe.donors import Donor
from mergekit_lite.moe.families.routed import routing_of

_COPIED = (
    "vocab_size", "max_position_embeddings", "hidden_act", "initializer_range", "rms_norm_eps",
    "use_cache", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_KEPT = ("transformers_version", "dtype", "torch_dtype", "original_max_position_embeddings")
"""Entries that are kept where the donor has them, and not made up."""


def config_of(assembly: Assembly) -> dict[str, Any]:
    """Return every entry of the result's config.json but those that `_KEPT` names."""
    donor, family, sizes = assembly.donor, assembly.family, assembly.sizes
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **{key: donor.get(key) for key in _COPIED},
        **{key: donor.get(key) for key in donor.dense.extra},
        "tie_word_embeddings": donor.tied,
        "hidden_size": donor.hidden,
        "num_hidden_layers": donor.layers,
        "num_attention_heads": donor.heads,
        "num_key_value_heads": donor.key_value_heads,
        **({} if donor.dense.latent else {"head_dim": donor.head_dim}),
        **_rope(donor),
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        **_counts(family.name, assembly.stored, sizes.per_token, sizes.layers),
        **family.settings(donor, sizes),
        **(routing_of(assembly.routing, donor.layers) if assembly.routing else {}),
        **({"expert_map": list(assembly.expert_map)} if assembly.expert_map else {}),
        **assembly.settings,
    }


def config_without(donor: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the entries of the donor's config that mean nothing in the result's."""
    return tuple(key for key in donor if key not in config and key not in _KEPT)


def _rope(donor: Donor) -> dict[str, Any]:
    """Return the rotation as older and newer loaders read it."""
    rope = dict(donor.rope)
    theta = rope["rope_theta"]
    plain = rope["rope_type"] == "default"
    scaling = None if plain else {k: v for k, v in rope.items() if k != "rope_theta"}
    return {"rope_theta": theta, "rope_parameters": rope, "rope_scaling": scaling}


def _counts(family: str, experts: int, per_token: int, layers: int) -> dict[str, Any]:
    """Return the numbers of experts under every name that some loader looks for."""
    found: dict[str, Any] = {
        "num_experts": experts,
        "num_local_experts": experts,
        "num_experts_per_tok": per_token,
    }
    if family in ("glm4_moe", "dots1", "deepseek_v2", "deepseek_v3"):
        found["n_routed_experts"] = experts
    if family == "ernie4_5_moe":
        found |= {"moe_num_experts": experts, "moe_k": per_token}
    if family == "hunyuan_v1_moe":
        # The converter of llama.cpp takes the first entry of a list.
        found["moe_topk"] = [per_token] * layers
    return found
