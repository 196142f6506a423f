"""From a routed base to one with fewer experts: what its headers and its config allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergekit_lite.moe.fewer.config import Settings, settings
from mergekit_lite.moe.fewer.stored import RoutedModule, modules_of
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.names import few
from mergekit_lite.recipe.schema import Recipe


@dataclass(frozen=True)
class Asked:
    """What a part of `moe` asks for.

    Attributes:
        part: its key, such as `prune`.
        keep: number of experts of a layer -> how many the result has.
        drafts: what becomes of layers that draft tokens ahead, where it is said.
        covers_drafts: the method knows what to do with them without being told.
    """

    part: str
    keep: Callable[[int], int]
    drafts: Literal["drop", "last"] | None
    covers_drafts: bool


@dataclass(frozen=True)
class Fewer:
    """A routed base that is to have fewer experts.

    Attributes:
        modules: the routed modules that are in the result, by name.
        settings: its numbers.
        without: beginnings of the names of all tensors that are left out.
        config: entries of the config that change.
    """

    modules: Mapping[str, RoutedModule]
    settings: Settings
    without: tuple[str, ...]
    config: Mapping[str, Any]


def settle_base(recipe: Recipe, asked: Asked, base: View, findings: Findings) -> Fewer | None:
    """Return the base as it is to become; None with problems noted."""
    where = recipe.at("moe", asked.part)
    before = len(findings.problems)
    modules = modules_of(base.tensors, base.model.config)
    experts = _check(modules, recipe, asked.part, base, findings)
    main = {root: own for root, own in modules.items() if not own.drafts}
    drafts = {root: own for root, own in modules.items() if own.drafts}
    if len(findings.problems) > before:
        return None
    if drafts and asked.drafts is None and not asked.covers_drafts:
        findings.problem(
            f"the model has layers that draft tokens ahead, with {experts} experts each, of which"
            f" nothing is measured: {few(list(drafts))}",
            where,
            "write `mtp: drop` to leave these layers out, or `mtp: last` to do with their experts"
            " what is done with those of the last layer",
        )
    keep = asked.keep(experts)
    changed = settings(recipe, asked.part, base.model.config, experts, keep, findings)
    if len(findings.problems) > before or changed is None:
        return None
    dropped = asked.drafts == "drop"
    inside = {**main, **({} if dropped else drafts)}
    starts = tuple(f"{root.rpartition('.')[0]}." for root in drafts) if dropped else ()
    config = {**changed.entries, **(changed.without_drafts if dropped else {})}
    return Fewer(inside, changed, starts, config)


def _check(
    modules: Mapping[str, RoutedModule], recipe: Recipe, part: str, base: View, findings: Findings
) -> int:
    """Return how many experts every layer has; note what keeps them from being told apart."""
    where = recipe.at("base")
    if not modules:
        findings.problem(
            f"the base has no routed experts, so `moe.{part}` has nothing to do",
            where,
            f"name a routed model as `base`; `moe` without `{part}` makes one of dense models",
        )
        return 0
    for own in modules.values():
        for name in own.odd:
            findings.problem_with(
                f"`{name}`",
                "experts cannot be told apart in these tensors",
                where,
                "take the checkpoint that the model's authors publish",
            )
        if not own.routers:
            findings.problem_with(
                f"`{own.root}`", "no router is known in these modules", where, "check the download"
            )
    counts = {own.experts for own in modules.values()}
    if len(counts) > 1:
        findings.problem(
            f"layers have different numbers of experts: {', '.join(map(str, sorted(counts)))}",
            where,
            "no loader has a config for such a model with fewer experts",
        )
    if base.model.config is None:
        findings.problem("the base has no config.json", where, "give the model's folder")
    return max(counts)
