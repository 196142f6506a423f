"""What a config says of the number of experts, in every spelling that loaders know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.recipe.schema import Recipe

_COUNTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts",
)  # fmt: skip
_SPELLINGS = ("num_experts", "num_local_experts")
"""Loaders of one family read the one or the other, so both are written."""
_CHOSEN = (
    "num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k",
    "moe_k", "num_selected_experts",
)  # fmt: skip
_DRAFTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")


@dataclass(frozen=True)
class Settings:
    """The numbers of the result.

    Attributes:
        keep: experts of each layer.
        groups: runs of experts among which routers choose first.
        before: experts that a token passes in the base.
        entries: of the config that change.
        without_drafts: more of them where draft layers are left out.
    """

    keep: int
    groups: int
    before: int
    entries: Mapping[str, Any]
    without_drafts: Mapping[str, Any]


def settings(
    recipe: Recipe,
    part: str,
    config: configs.Config,
    experts: int,
    keep: int,
    findings: Findings,
) -> Settings | None:
    """Return the numbers of a model with fewer experts; None with problems noted.

    Args:
        recipe: what is wanted.
        part: key of `moe` that says so, such as `prune`.
        config: of the base.
        experts: that each layer stores.
        keep: how many of them the result has.
        findings: where problems are noted.
    """
    before = len(findings.problems)
    counts = numbers(config, _COUNTS, findings, recipe.at("base"))
    chosen = numbers(config, _CHOSEN, findings, recipe.at("base"))
    if not counts or not chosen or set(counts.values()) != {experts}:
        findings.problem(
            f"the config does not say that each layer has {experts} experts, and how many a token"
            f" passes: {counts or 'no number of experts'}, {chosen or 'none a token'}",
            recipe.at("base"),
            "check that the download is whole and the config is of this model",
        )
        return None
    groups = configs.value(config, "n_group")
    groups = groups if type(groups) is int and groups > 1 else 1
    where = recipe.at("moe", part, "keep")
    _check_keep(keep, experts, groups, where, findings)
    # Groups are ranked by their two best experts; also where there is one group alone.
    by_two = configs.has(config, "n_group") and "greedy" not in str(
        configs.value(config, "topk_method")
    )
    if by_two and keep // groups < 2:
        findings.problem(
            f"routers of this model rank groups by two experts, and {keep // groups} would stay",
            where,
            f"keep at least {2 * groups}",
        )
    reachable = _reachable(config, keep, groups)
    per_token = _per_token(recipe, part, reachable, max(chosen.values()), findings)
    if len(findings.problems) > before:
        return None
    entries: dict[str, Any] = {}
    for key in counts:
        entries[key] = like(configs.value(config, key), keep)
    nested = any(key in configs.NESTED for key in config or {})
    if not nested:
        entries |= dict.fromkeys(_SPELLINGS, keep)
    for key in chosen:
        entries[key] = like(configs.value(config, key), per_token)
    drafts = {key: 0 for key in _DRAFTS if configs.has(config, key)}
    return Settings(keep, groups, max(chosen.values()), entries, drafts)


def number_of(keep: float | None, experts: int) -> int:
    """Return how many experts of a layer a number, or a share below 1, stands for; rounded up."""
    keep = keep or 0
    return ceil(keep * experts - 1e-9) if keep < 1 else int(keep)


def numbers(
    config: configs.Config, keys: tuple[str, ...], findings: Findings, where: str
) -> dict[str, int]:
    """Return the entries that are there; one that lists layers must say the same of all.

    Args:
        config: of a routed model.
        keys: to look for.
        findings: where entries that differ by layer are noted.
        where: the place of the model in the recipe.
    """
    found = {}
    for key in keys:
        value = configs.value(config, key)
        if isinstance(value, list) and value and all(entry == value[0] for entry in value):
            value = value[0]
        if isinstance(value, list):
            findings.problem(
                f"`{key}` of the config differs by layer: {value}",
                where,
                "only models whose layers are alike can have other numbers of experts",
            )
        elif type(value) is int and value > 0:
            found[key] = value
    return found


def like(value: Any, number: int) -> Any:
    """Return a number in the form of an entry, which may list layers."""
    return [number] * len(value) if isinstance(value, list) else number


def _check_keep(keep: int, experts: int, groups: int, where: str, findings: Findings) -> None:
    if not 0 < keep <= experts:
        findings.problem(
            f"{keep} experts cannot stay of {experts}", where, f"keep 1 to {experts} of them"
        )
    elif keep % groups:
        near = sorted({max(keep // groups, 1) * groups, -(-keep // groups) * groups})
        findings.problem(
            f"routers of this model choose among {groups} groups of equal size (`n_group`), and"
            f" {keep} experts cannot be spread evenly over them",
            where,
            f"keep {' or '.join(map(str, near))}",
        )


def _reachable(config: configs.Config, keep: int, groups: int) -> int:
    """Return how many experts a token can reach: those of the groups that it chooses first."""
    chosen = configs.value(config, "topk_group")
    if groups > 1 and type(chosen) is int:
        return min(keep, chosen * keep // groups)
    return keep


def _per_token(recipe: Recipe, part: str, reachable: int, before: int, findings: Findings) -> int:
    """Return how many experts a token passes: as many as before where there are enough."""
    asked = recipe.moe.experts_per_token if recipe.moe else None
    if asked is not None and asked > reachable:
        findings.problem(
            f"tokens cannot pass {asked} of {reachable} experts that they can reach",
            recipe.at("moe", "experts_per_token"),
            f"write at most {reachable}",
        )
    if asked is None and before > reachable > 0:
        findings.warn(
            f"tokens passed {before} experts and now reach {reachable}, which all are chosen",
            recipe.at("moe", part),
        )
    return min(before, reachable) if asked is None else asked
