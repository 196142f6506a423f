"""Merged experts under the routers that the base had: rows stand for their groups' experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_lite.moe.fewer.settle import Fewer
from mergekit_lite.moe.merge.groups import Group
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import Recipe

_CLASSES = {"qwen3_moe": "qwen3", "mixtral": "mistral"}
"""Families that are a dense one with experts in place of feed-forward layers."""
_NAMES = {
    "mixtral": {
        ".block_sparse_moe.": ".mlp.",
        ".w1.": ".gate_proj.",
        ".w3.": ".up_proj.",
        ".w2.": ".down_proj.",
    }
}
"""Parts of names in a family, and what they are in `target: routed`, where that is not the same."""
_DEFAULTS = {"mixtral": {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "sliding_window": None}}
"""What a family takes where its config says nothing, and the dense one takes something else."""


def check_map(recipe: Recipe, fewer: Fewer, base: View, findings: Findings) -> None:
    """Note a base whose routers cannot be kept, because no class of ours computes it."""
    kind = configs.model_type(base.model.config)
    stacked = any(own.stacked for own in fewer.modules.values())
    if (kind in _CLASSES or kind.startswith("routed_")) and not stacked:
        return
    findings.problem(
        f"no code is written for a `{kind}` model some of whose router's rows share an expert",
        recipe.at("moe", "merge", "router"),
        "`router: map` is for Mixtral, Qwen3-MoE and models of `target: routed` whose experts are"
        " stored one by one; take `lse`",
    )


def mapped_name(name: str, base: View) -> str:
    """Return what a tensor of the base is called in the class that the result has."""
    for part, own in _NAMES.get(configs.model_type(base.model.config), {}).items():
        name = name.replace(part, own)
    return name


def mapped_config(
    fewer: Fewer, groups: Mapping[str, Sequence[Group]], base: View
) -> dict[str, Any]:
    """Return the entries of the result's config: of its class, and which row is whose."""
    config = base.model.config or {}
    maps: dict[int, list[int]] = {}
    for root, own in groups.items():
        module = fewer.modules[root]
        row = {expert: at for at, group in enumerate(own) for expert in group.everyone}
        if module.layer is None:
            continue
        maps[module.layer] = [row[expert] for expert in range(module.experts)]
    layers = int(configs.value(config, "num_hidden_layers") or 1 + max(maps))
    found = {
        **fewer.config,
        "num_experts_per_tok": fewer.settings.before,
        "expert_map": [maps.get(layer, []) for layer in range(layers)],
        "routed_layers": sorted(maps),
    }
    kind = configs.model_type(config)
    if kind in _CLASSES:
        said = {*config, *(("rope_theta",) if "rope_parameters" in config else ())}
        usual = {k: v for k, v in _DEFAULTS.get(kind, {}).items() if k not in said}
        experts = 1 + max(row for own in maps.values() for row in own)
        found |= usual | {"num_experts": experts}
        found |= {
            "architectures": ["RoutedForCausalLM"],
            "model_type": f"routed_{_CLASSES[kind]}",
            "auto_map": {
                "AutoConfig": "configuration_routed.RoutedConfig",
                "AutoModelForCausalLM": "modeling_routed.RoutedForCausalLM",
            },
            "router": "linear",
            "shared_intermediate_size": 0,
        }
    return found
