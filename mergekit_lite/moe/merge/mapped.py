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

_CLASSES = {"qwen3_moe": "qwen3"}
"""Families that are a dense one with experts under the names of `target: routed`."""


def check_map(recipe: Recipe, fewer: Fewer, base: View, findings: Findings) -> None:
    """Note a base whose routers cannot be kept, because no class of ours computes it."""
    kind = configs.model_type(base.model.config)
    stacked = any(own.stacked for own in fewer.modules.values())
    if (kind in _CLASSES or kind.startswith("routed_")) and not stacked:
        return
    findings.problem(
        f"no code is written for a `{kind}` model some of whose router's rows share an expert",
        recipe.at("moe", "merge", "router"),
        "`router: map` is for Qwen3-MoE models and for those of `target: routed`; take `lse`",
    )


def mapped_config(
    fewer: Fewer, groups: Mapping[str, Sequence[Group]], base: View
) -> dict[str, Any]:
    """Return the entries of the result's config: of its class, and which row is whose."""
    config = base.model.config
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
