"""From what a recipe says of a routed base, and headers, to the experts that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_lite.moe.fewer.config import number_of
from mergekit_lite.moe.fewer.settle import Asked, settle_base
from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.moe.judged import warn_of_statistics
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
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
    prune = moe.prune
    asked = Asked(
        "prune",
        lambda experts: number_kept(prune, experts),
        prune.mtp,
        _covers_drafts(prune),
    )
    fewer = settle_base(recipe, asked, base, findings)
    if fewer is None:
        return None
    warn_of_statistics(recipe, prune.stats, findings, recipe.at("moe", "prune"))
    # Here, because assembling a model needs no numpy.
    from mergekit_lite.moe.prune.decide import decide

    before, numbers = len(findings.problems), fewer.settings
    decision = decide(
        recipe, found, fewer.modules, numbers.keep, numbers.groups, numbers.before, findings
    )
    if decision is None or len(findings.problems) > before:
        return None
    return Pruning(
        prune,
        fewer.modules,
        decision.kept,
        decision.scores,
        fewer.without,
        fewer.config,
        decision.facts,
    )


def number_kept(prune: Prune, experts: int) -> int:
    """Return how many experts of a layer stay; a share is rounded up."""
    if prune.experts is None:
        return number_of(prune.keep, experts)
    listed = list(prune.experts.values()) if isinstance(prune.experts, Mapping) else [prune.experts]
    return max((len(set(own)) for own in listed), default=0)


def _covers_drafts(prune: Prune) -> bool:
    """Return whether the method looks at draft layers as at any other."""
    return prune.method in ("router_norm", "router_change", "random") or (
        prune.method == "listed" and not isinstance(prune.experts, Mapping)
    )
