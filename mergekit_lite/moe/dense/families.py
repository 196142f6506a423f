"""Which dense family computes what a routed one would with experts that are all the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergekit_lite.plan import configs


@dataclass(frozen=True)
class DenseTwin:
    """The dense family of a routed one.

    Attributes:
        name: its `model_type`.
        architecture: the class that loaders look for.
        defaults: what the routed class takes where its config says nothing.
        width: entry of the routed config that is the width of an expert.
    """

    name: str
    architecture: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    width: str = "intermediate_size"


TWINS: Mapping[str, DenseTwin] = {
    "mixtral": DenseTwin(
        "mistral",
        "MistralForCausalLM",
        {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None},
    ),
    "qwen3_moe": DenseTwin(
        "qwen3",
        "Qwen3ForCausalLM",
        {"rms_norm_eps": 1e-6, "rope_theta": 10000.0},
        width="moe_intermediate_size",
    ),
    "granitemoe": DenseTwin(
        "granite", "GraniteForCausalLM", {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    ),
}
"""By `model_type` of the routed model."""

_GONE = (
    "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
    "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise",
)  # fmt: skip


def settings(
    config: configs.Config, twin: DenseTwin, width: int, hidden: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the entries of the dense config that change, and those that go."""
    given = config or {}
    heads = int(configs.value(given, "num_attention_heads") or 1)
    own: dict[str, Any] = {
        "model_type": twin.name,
        "architectures": [twin.architecture],
        "intermediate_size": width,
        "head_dim": given.get("head_dim") or hidden // heads,
        "tie_word_embeddings": bool(given.get("tie_word_embeddings", False)),
    }
    for key, value in twin.defaults.items():
        if key not in given and not (key == "rope_theta" and "rope_parameters" in given):
            own[key] = value
    return own, tuple(key for key in _GONE if key in given)
