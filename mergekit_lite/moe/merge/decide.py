"""Which experts of each routed module become one, by the method that a recipe names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mergekit_lite.errors import DataError, MergekitLiteError
from mergekit_lite.moe.fewer.settle import Fewer
from mergekit_lite.moe.fewer.statistics import Numbers, layer_statistics
from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.moe.merge.groups import Group, group_of, in_order
from mergekit_lite.moe.merge.methods import METHODS
from mergekit_lite.moe.merge.seen import Seen
from mergekit_lite.moe.prune.scores import SCORES, tokens
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import placed
from mergekit_lite.recipe.schema import MergeExperts, Recipe

RATES = ("count", "weighted_norm")
"""What is read of every layer: how often experts are chosen, and REAP's score."""


def decide(
    recipe: Recipe, merge: MergeExperts, fewer: Fewer, findings: Findings
) -> dict[str, tuple[Group, ...]] | None:
    """Return the groups of each routed module; None with problems noted.

    Args:
        recipe: where statistics are named from.
        merge: what it says of groups.
        fewer: the routed base.
        findings: where problems are noted.
    """
    before = len(findings.problems)
    main = {root: own for root, own in fewer.modules.items() if not own.drafts}
    found: dict[str, tuple[Group, ...]] = {}
    for root, own in main.items():
        try:
            seen = _seen(recipe, merge, own)
            weights = _weights(merge, seen, own.experts)
            listed = _listed(recipe, merge, own, fewer, findings)
            if listed is None and seen is not None:
                _check_finite(seen, own)
                listed = list(_by_method(recipe, merge, seen, fewer, findings))
        except MergekitLiteError as error:
            findings.problems += placed(error.problems, recipe.at("moe", "merge"))
            return None
        found[root] = in_order(group_of(group, weights) for group in listed or [])
    if len(findings.problems) > before:
        return None
    last = max(main, key=lambda root: main[root].layer or 0)
    return {root: found[root if root in found else last] for root in fewer.modules}


def _seen(recipe: Recipe, merge: MergeExperts, own: RoutedModule) -> Seen | None:
    """Return what was measured of a module's experts; None without a measurement."""
    if merge.stats is None:
        return None
    folder = recipe.folder / Path(merge.stats).expanduser()
    needs = METHODS[merge.method].needs if merge.method in METHODS else {}
    wanted = {kind: needs.get(kind, ()) for kind in ("rates", "merging") if kind in needs}
    wanted["rates"] = (*RATES, *needs.get("rates", ()))
    found: dict[str, Numbers] = {}
    for kind, names in wanted.items():
        measured = layer_statistics(folder, kind, own.layer or 0, names)
        for name in names:
            if name not in measured:
                raise DataError(
                    f"`{merge.stats}` says nothing of `{name}` in layer {own.layer}",
                    hint=f"measure again with `mergekit-lite calibrate --collect {kind}`",
                )
            experts = measured[name].shape[1 if name == "count" else 0]
            if experts != own.experts:
                raise DataError(
                    f"`{merge.stats}` speaks of {experts} experts in layer {own.layer}, the base"
                    f" has {own.experts}",
                    hint="name statistics that were made of this base",
                )
            found[name] = measured[name]
    others = {name: value for name, value in found.items() if name not in RATES}
    return Seen(tokens(found), SCORES["reap"].of(found), others, merge.largest)


def _check_finite(seen: Seen, own: RoutedModule) -> None:
    for name, value in (("saliency", seen.saliency), *seen.measured.items()):
        if not np.isfinite(value).all():
            raise DataError(
                f"`{name}` of layer {own.layer} is not finite",
                hint="measure again: the texts or the weights gave infinities",
            )


def _weights(merge: MergeExperts, seen: Seen | None, experts: int) -> list[float]:
    """Return how much each expert of a layer counts."""
    kind = merge.weights
    if kind is None and seen is not None:
        kind = METHODS[merge.method].weights if merge.method in METHODS else "frequency"
    if seen is None or kind in (None, "equal"):
        return [1.0] * experts
    counted = seen.saliency if kind == "saliency" else seen.frequency
    return [float(value) for value in counted]


def _by_method(
    recipe: Recipe, merge: MergeExperts, seen: Seen, fewer: Fewer, findings: Findings
) -> Iterator[list[int]]:
    """Yield groups, each within one of the runs that routers choose among first."""
    runs = fewer.settings.groups
    size, keep = seen.experts // runs, fewer.settings.keep // runs
    if merge.method == "ream" and keep * merge.largest < size:
        least = -(-size // keep)
        findings.problems += placed(
            DataError(
                f"{keep} groups of at most {merge.largest} experts do not hold {size}",
                hint=f"write `largest: {least}`, or keep more experts",
            ).problems,
            recipe.at("moe", "merge"),
        )
        return
    for first in range(0, seen.experts, size):
        run = range(first, first + size)
        for places in METHODS[merge.method].groups(seen.among(run), keep):
            yield [first + place for place in places]


def _listed(
    recipe: Recipe,
    merge: MergeExperts,
    own: RoutedModule,
    fewer: Fewer,
    findings: Findings,
) -> list[list[int]] | None:
    """Return the groups that a recipe lists, and all others alone; None where it lists none."""
    if merge.groups is None:
        return None
    where = recipe.at("moe", "merge", "groups")
    listed = listed_of(merge, own.layer or 0)
    named = [expert for group in listed for expert in group]
    if wrong := [expert for expert in named if not 0 <= expert < own.experts]:
        findings.problem_with(
            f"`{own.root}`",
            f"groups name expert {wrong[0]}, there are {own.experts}",
            where,
            "experts are counted from 0",
        )
        return []
    if len(set(named)) < len(named):
        twice = next(expert for expert in named if named.count(expert) > 1)
        findings.problem_with(
            f"`{own.root}`", f"expert {twice} is named twice", where, "a group has it or another"
        )
        return []
    alone = [[expert] for expert in range(own.experts) if expert not in set(named)]
    groups = [*(list(group) for group in listed if group), *alone]
    size = own.experts // fewer.settings.groups
    leads = [0] * fewer.settings.groups
    mixed = [group for group in groups if len({expert // size for expert in group}) > 1]
    for group in groups:
        leads[group[0] // size] += 1
    if mixed or len(groups) != fewer.settings.keep or len(set(leads)) > 1:
        findings.problem_with(
            f"`{own.root}` ({len(groups)})",
            f"not every layer keeps {fewer.settings.keep} experts, as many of each run of experts"
            " among which routers choose first",
            where,
            "a config has one number for all layers",
        )
    return groups


def listed_of(merge: MergeExperts, layer: int) -> Sequence[Sequence[int]]:
    """Return the groups that a recipe lists for a layer."""
    if isinstance(merge.groups, Mapping):
        return merge.groups.get(layer, ())
    return merge.groups or ()
