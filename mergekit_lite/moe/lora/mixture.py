"""What a mixture of adapters is made of, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_lite.checkpoint import LoraFactors
from mergekit_lite.recipe.schema import MoeExpert

TASKS = "task_embeddings"
"""Name of the table of embeddings, one row for each expert."""


@dataclass(frozen=True)
class Module:
    """A linear layer of the base with low-rank pairs beside it.

    Attributes:
        inputs, outputs: of the layer.
        rank: of the widest pair; narrower ones are filled up with zeros.
        layer: it belongs to, None outside the layers.
        pairs: the factors of each expert, None of one that leaves the layer alone.
    """

    inputs: int
    outputs: int
    rank: int
    layer: int | None
    pairs: tuple[LoraFactors | None, ...]


@dataclass(frozen=True)
class Mixture:
    """A model of a base and routed adapters.

    Attributes:
        donor: `model_type` of the base.
        experts: the adapters, in order.
        modules: by name, such as `model.layers.0.self_attn.q_proj`.
        per_token: experts that each token passes, in every module.
        gate, params: how the gates are made.
        score: what the class does with a token and a gate's rows.
        tasks: entries of an expert's embedding, 0 for none.
    """

    donor: str
    experts: tuple[MoeExpert, ...]
    modules: Mapping[str, Module]
    per_token: int
    gate: str
    params: Mapping[str, Any]
    score: str
    tasks: int = 0
    for_training: bool = False

    def config(self) -> dict[str, Any]:
        """Return the entries of the result's config that its base has not."""
        return {
            "architectures": ["LoraMoeForCausalLM"],
            "model_type": f"lora_moe_{self.donor}",
            "auto_map": {
                "AutoConfig": "configuration_lora_moe.LoraMoeConfig",
                "AutoModelForCausalLM": "modeling_lora_moe.LoraMoeForCausalLM",
            },
            "num_experts": len(self.experts),
            "num_experts_per_tok": self.per_token,
            "expert_names": [expert.expert for expert in self.experts],
            "expert_modules": {name: module.rank for name, module in self.modules.items()},
            "router_score": self.score,
            "router_temperature": float(self.params.get("temperature", 1.0)),
            "task_embedding_size": self.tasks,
            "task_scale": float(self.params.get("scale", 0.0)) if self.tasks else 0.0,
        }

    def plain(self) -> dict[str, Any]:
        """Return what a run needs to make the gates, and what the manifest says."""
        modules = {
            name: {
                "inputs": module.inputs,
                "rank": module.rank,
                "pairs": [pair and [pair.a, pair.b, pair.scale] for pair in module.pairs],
            }
            for name, module in self.modules.items()
        }
        return {
            "target": "lora_moe",
            "mixture": {
                "experts": [
                    expert.model_dump(mode="json", exclude_defaults=True) for expert in self.experts
                ],
                "experts_per_token": self.per_token,
                "gate": {"method": self.gate, "params": dict(self.params)},
                "score": self.score,
                "tasks": self.tasks,
                "for_training": self.for_training,
                "modules": modules,
            },
        }
