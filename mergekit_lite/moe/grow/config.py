"""What a config says of the number of experts after some were added."""

from __future__ import annotations

from typing import Any

from mergekit_lite.moe.fewer.config import like, numbers
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.recipe.schema import Recipe

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k")


def settings(
    recipe: Recipe, config: configs.Config, experts: int, added: int, findings: Findings
) -> dict[str, Any]:
    """Return the entries of a config that change; problems are noted.

    Args:
        recipe: with `moe.grow`.
        config: of the base.
        experts: that each layer of it has.
        added: to each layer.
        findings: where problems are noted.
    """
    counts = numbers(config, _COUNTS, findings, recipe.at("base"))
    chosen = numbers(config, _CHOSEN, findings, recipe.at("base"))
    if set(counts.values()) != {experts} or len(set(chosen.values())) != 1:
        findings.problem(
            f"the config does not say that each layer has {experts} experts, and how many a token"
            f" passes: {counts or 'no number of experts'}, {chosen or 'none a token'}",
            recipe.at("base"),
            "check that the download is whole and the config is of this model",
        )
        return {}
    groups = configs.value(config, "n_group")
    if type(groups) is int and groups > 1:
        findings.problem(
            f"routers of the base choose among {groups} groups of experts (`n_group`), which added"
            " ones would shift",
            recipe.at("moe", "grow"),
            "take a base without groups",
        )
    total = experts + added
    entries: dict[str, Any] = dict.fromkeys(("num_experts", "num_local_experts"), total)
    entries |= {key: like(configs.value(config, key), total) for key in counts}
    asked = recipe.moe.experts_per_token if recipe.moe else None
    if asked is not None and asked > total:
        findings.problem(
            f"tokens cannot pass {asked} of {total} experts",
            recipe.at("moe", "experts_per_token"),
            f"write at most {total}",
        )
    if asked is not None:
        entries |= {key: like(configs.value(config, key), asked) for key in chosen}
    return entries
