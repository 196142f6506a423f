"""From what a recipe says of merging experts, and headers, to the groups of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_lite.moe.fewer.config import number_of
from mergekit_lite.moe.fewer.settle import Asked, settle_base
from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.moe.judged import warn_of_statistics
from mergekit_lite.moe.merge.checks import check_base, check_groups
from mergekit_lite.moe.merge.groups import Group
from mergekit_lite.moe.merge.made import Made, made_of, working
from mergekit_lite.moe.merge.mapped import check_map, mapped_config
from mergekit_lite.moe.merge.matrices import Matrices, matrices_of
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import BASE, MergeExperts, Recipe


@dataclass(frozen=True)
class Merging:
    """A routed model some of whose experts become one.

    Attributes:
        merge: what the recipe says.
        modules: the routed modules that are in the result, by name.
        groups: of each, in the order of the result.
        matrices: how each module stores the matrices of its experts.
        made: what has to be made before rows run.
        without: beginnings of the names of all tensors that are left out.
        config: entries of the config that change.
    """

    merge: MergeExperts
    modules: Mapping[str, RoutedModule]
    groups: Mapping[str, tuple[Group, ...]]
    matrices: Mapping[str, Matrices]
    made: tuple[Made, ...]
    without: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def kept(self) -> Mapping[str, tuple[int, ...]]:
        """The leading expert of each group, in order."""
        return {root: tuple(group.lead for group in own) for root, own in self.groups.items()}

    def plain(self) -> dict[str, Any]:
        """Return what the manifest and the making of what is made need, as plain data."""
        modules = {
            root: {
                "layer": self.modules[root].layer,
                "drafts": self.modules[root].drafts,
                "experts": self.modules[root].experts,
                "groups": [group.plain() for group in own],
            }
            for root, own in self.groups.items()
        }
        return {
            **({"target": "routed"} if "auto_map" in self.config else {}),
            "merged": {
                "merge": self.merge.model_dump(mode="json", exclude_defaults=True),
                "method": self.merge.method,
                "modules": modules,
                "working": working(self.merge, self.made, self.groups, self.matrices),
                "made": [made.plain() for made in self.made],
                "matrices": {root: own.plain() for root, own in self.matrices.items()},
            },
        }


def settle(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Merging | None:
    """Return what a routed base becomes when experts are merged; None with problems noted."""
    moe, base = recipe.moe, found[BASE]
    if moe is None or moe.merge is None or base.settled:
        return None
    merge = moe.merge
    mapped = merge.router == "map"
    asked = Asked("merge", lambda experts: _number_kept(merge, experts), merge.mtp, False)
    fewer = settle_base(recipe, asked, base, findings)
    if fewer is None:
        return None
    warn_of_statistics(recipe, merge.stats, findings, recipe.at("moe", "merge"))
    before = len(findings.problems)
    matrices = matrices_of(fewer.modules, base)
    check_base(recipe, merge, fewer.modules, matrices, base, findings)
    if mapped:
        check_map(recipe, fewer, base, findings)
    # Here, because assembling a model needs no numpy.
    from mergekit_lite.moe.merge.decide import decide

    groups = decide(recipe, merge, fewer, findings)
    if groups is None:
        return None
    check_groups(recipe, groups, matrices, base, findings)
    if len(findings.problems) > before:
        return None
    return Merging(
        merge,
        fewer.modules,
        groups,
        matrices,
        tuple(made_of(merge, fewer.modules, groups, matrices, base)),
        fewer.without,
        mapped_config(fewer, groups, base) if mapped else fewer.config,
    )


def _number_kept(merge: MergeExperts, experts: int) -> int:
    """Return how many experts of a layer there are afterwards."""
    if merge.groups is None:
        return number_of(merge.keep, experts)
    layers = merge.groups.values() if isinstance(merge.groups, Mapping) else [merge.groups]
    gone = [sum(max(len(group) - 1, 0) for group in groups) for groups in layers]
    return experts - max(gone, default=0)
