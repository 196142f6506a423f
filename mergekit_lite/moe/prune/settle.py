"""From what a recipe says of a routed base, and headers, to the experts that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_lite.moe.prune.config import settings
from mergekit_lite.moe.prune.stored import RoutedModule, modules_of
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.names import few
from mergekit_lite.recipe.schema import BASE, Prune, Recipe


@dataclass(frozen=True)
class Pruning:
    """A routed model that some experts are left out of.

    Attributes:
        prune: what the recipe says.
        modules: the routed modules that are in the result, by name.
        kept: the experts of each that stay, in order.
        scores: of all experts of each, where there are any.
        without: beginnings of the names of all tensors that are left out.
        config: entries of the config that change.
        facts: what the method says of itself.
    """

    prune: Prune
    modules: Mapping[str, RoutedModule]
    kept: Mapping[str, tuple[int, ...]]
    scores: Mapping[str, list[float]]
    without: tuple[str, ...]
    config: Mapping[str, Any]
    facts: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return what the manifest says, as plain data."""
        modules = {
            root: {
                "layer": self.modules[root].layer,
                "experts": self.modules[root].experts,
                "kept": list(kept),
                **({"scores": self.scores[root]} if root in self.scores else {}),
            }
            for root, kept in self.kept.items()
        }
        return {
            "pruned": {
                "prune": self.prune.model_dump(mode="json", exclude_defaults=True),
                "method": self.prune.method,
                **self.facts,
                "modules": modules,
            }
        }


def settle(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Pruning | None:
    """Return what is left out of a routed base; None with problems noted."""
    moe, base = recipe.moe, found[BASE]
    if moe is None or moe.prune is None or base.settled:
        return None
    where = recipe.at("moe", "prune")
    before = len(findings.problems)
    modules = modules_of(base.tensors, base.model.config)
    experts = _check(modules, recipe, base, findings)
    main = {root: own for root, own in modules.items() if not own.drafts}
    drafts = {root: own for root, own in modules.items() if own.drafts}
    if len(findings.problems) > before:
        return None
    if drafts and moe.prune.mtp is None and not _covers_drafts(moe.prune):
        findings.problem(
            f"the model has layers that draft tokens ahead, with {experts} experts each, of which"
            f" nothing is measured: {few(list(drafts))}",
            where,
            "write `mtp: drop` to leave these layers out, or `mtp: last` to keep the experts that"
            " the last layer keeps",
        )
    changed = settings(recipe, base.model.config, experts, findings)
    if len(findings.problems) > before or changed is None:
        return None
    # Here, because assembling a model needs no numpy.
    from mergekit_lite.moe.prune.decide import decide

    dropped = moe.prune.mtp == "drop"
    inside = {**main, **({} if dropped else drafts)}
    decision = decide(recipe, found, inside, changed.keep, changed.groups, changed.before, findings)
    if decision is None or len(findings.problems) > before:
        return None
    starts = tuple(f"{root.rpartition('.')[0]}." for root in drafts) if dropped else ()
    config = {**changed.entries, **(changed.without_drafts if dropped else {})}
    return Pruning(
        moe.prune, inside, decision.kept, decision.scores, starts, config, decision.facts
    )


def _covers_drafts(prune: Prune) -> bool:
    """Return whether the method looks at draft layers as at any other."""
    return prune.method in ("router_norm", "router_change", "random") or (
        prune.method == "listed" and not isinstance(prune.experts, Mapping)
    )


def _check(
    modules: Mapping[str, RoutedModule], recipe: Recipe, base: View, findings: Findings
) -> int:
    """Return how many experts every layer has; note what keeps them from being left out."""
    where = recipe.at("base")
    if not modules:
        findings.problem(
            "the base has no routed experts, so there is nothing to leave out",
            where,
            "name a routed model as `base`; `moe` without `prune` makes one of dense models",
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
            "no loader has a config for such a model after pruning",
        )
    if base.model.config is None:
        findings.problem("the base has no config.json", where, "give the model's folder")
    return max(counts)
