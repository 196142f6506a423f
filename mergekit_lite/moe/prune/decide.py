"""Which experts of each routed module stay, by the method that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mergekit_lite.errors import DataError, MergekitLiteError
from mergekit_lite.moe.fewer.statistics import Numbers, has_all, layer_statistics
from mergekit_lite.moe.fewer.stored import RoutedModule
from mergekit_lite.moe.prune.choose import best, super_experts
from mergekit_lite.moe.prune.naee import Layer, search
from mergekit_lite.moe.prune.routers import change_scores
from mergekit_lite.moe.prune.scores import SCORES
from mergekit_lite.ops._place import random_key
from mergekit_lite.ops._random import uniforms
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View, placed
from mergekit_lite.recipe.schema import Prune, Recipe

Modules = Mapping[str, RoutedModule]


@dataclass(frozen=True)
class Decision:
    """The experts that stay.

    Attributes:
        kept: of each routed module.
        scores: of each expert of a module, where there are any.
        facts: what the manifest says of how they were chosen.
    """

    kept: Mapping[str, tuple[int, ...]]
    scores: Mapping[str, list[float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def decide(
    recipe: Recipe,
    found: Mapping[str, View],
    modules: Modules,
    keep: int,
    groups: int,
    per_token: int,
    findings: Findings,
) -> Decision | None:
    """Return which experts stay; None with problems noted.

    Args:
        recipe: with `moe.prune`.
        found: the base, and what its routers are compared to.
        modules: the routed modules of the result.
        keep: experts of each.
        groups: runs of experts among which routers choose first.
        per_token: experts that a token passes before any are left out.
        findings: where problems are noted.
    """
    prune = recipe.moe.prune if recipe.moe else None
    if prune is None:
        return None
    if prune.method == "listed":
        return _listed(recipe, prune, modules, keep, groups, findings)
    main = {root: own for root, own in modules.items() if not own.drafts}
    last = max(main, key=lambda root: main[root].layer or 0)
    if prune.method == "naee":
        return _searched(recipe, prune, modules, main, last, keep, groups, per_token, findings)
    measured = main if prune.stats is not None else modules
    try:
        statistics = _statistics(recipe, prune, measured)
        scores = _scores(recipe, prune, found, measured, statistics)
    except MergekitLiteError as error:
        findings.problems += placed(error.problems, recipe.at("moe", "prune"))
        return None
    if bad := [root for root, own in scores.items() if not np.isfinite(own).all()]:
        findings.problem(
            f"scores of `{bad[0]}` are not finite",
            recipe.at("moe", "prune"),
            "measure again: the texts or the weights gave infinities",
        )
        return None
    guarded = _guarded(prune, statistics)
    facts: dict[str, Any] = {}
    if guarded:
        facts["protected"] = guarded
        _warn_of_guarded(guarded, keep, recipe, findings)
    kept = {root: best(own, keep, groups, guarded.get(root, ())) for root, own in scores.items()}
    kept |= {root: kept[last] for root in modules if root not in kept}
    plain = {root: own.tolist() for root, own in scores.items()}
    return Decision(kept, plain, facts)


def _searched(
    recipe: Recipe,
    prune: Prune,
    modules: Modules,
    main: Modules,
    last: str,
    keep: int,
    groups: int,
    per_token: int,
    findings: Findings,
) -> Decision | None:
    """Return the experts that together come nearest to the whole layer."""
    where = recipe.at("moe", "prune")
    if groups > 1:
        findings.problem(
            "`naee` searches among all experts, and routers of this model choose groups first",
            where,
            "take another method, such as `reap`",
        )
        return None
    folder = recipe.folder / Path(prune.stats or "").expanduser()
    found = {}
    try:
        for root, own in main.items():
            measured = layer_statistics(folder, "outputs", own.layer or 0)
            _check_statistics({**measured, "count": measured["logits"]}, ("logits",), own, prune)
            found[root] = search(Layer(measured, per_token), keep)
    except MergekitLiteError as error:
        findings.problems += placed(error.problems, where)
        return None
    kept = {root: found[root if root in found else last].kept for root in modules}
    distances = {root: own.distance for root, own in found.items()}
    return Decision(kept, facts={"search": found[last].search, "distances": distances})


def _statistics(recipe: Recipe, prune: Prune, modules: Modules) -> dict[str, dict[str, Numbers]]:
    if prune.stats is None:
        return {}
    folder = recipe.folder / Path(prune.stats).expanduser()
    return {
        root: layer_statistics(folder, "rates", own.layer or 0) for root, own in modules.items()
    }


def _scores(
    recipe: Recipe,
    prune: Prune,
    found: Mapping[str, View],
    modules: Modules,
    statistics: Mapping[str, Mapping[str, Numbers]],
) -> dict[str, Numbers]:
    if prune.method == "random":
        return {
            root: uniforms(0, own.experts, random_key(recipe.seed, "moe.prune", "", root))
            for root, own in modules.items()
        }
    if prune.method in ("router_norm", "router_change"):
        return change_scores(prune, found, modules)
    score = SCORES[prune.method]
    wanted = (*score.needs, *(("peak",) if prune.protect != "none" else ()))
    result = {}
    for root, own in modules.items():
        _check_statistics(statistics[root], wanted, own, prune)
        result[root] = score.of(statistics[root])
    return result


def _check_statistics(
    found: Mapping[str, Numbers], wanted: tuple[str, ...], own: RoutedModule, prune: Prune
) -> None:
    if not has_all(found, wanted):
        lacking = next(name for name in wanted if name not in found)
        raise DataError(
            f"`{prune.stats}` says nothing of `{lacking}` in layer {own.layer}",
            hint="it was made by another version, or the layer computes what is not known here:"
            " measure again, or take another method",
        )
    if found["count"].shape[-1] != own.experts:
        raise DataError(
            f"`{prune.stats}` speaks of {found['count'].shape[-1]} experts in layer {own.layer},"
            f" the base has {own.experts}",
            hint="name statistics that were made of this base",
        )


def _guarded(prune: Prune, statistics: Mapping[str, Mapping[str, Numbers]]) -> dict[str, list[int]]:
    if prune.protect == "none":
        return {}
    roots = list(statistics)
    peaks = {at: statistics[root]["peak"] for at, root in enumerate(roots)}
    found = super_experts(peaks, everywhere=prune.protect == "outliers")
    return {roots[at]: experts for at, experts in found.items() if experts}


def _warn_of_guarded(
    guarded: Mapping[str, Sequence[int]], keep: int, recipe: Recipe, findings: Findings
) -> None:
    for root, experts in guarded.items():
        if len(experts) > keep:
            findings.warn_of(
                f"`{root}` ({len(experts)})",
                f"more experts are protected than the {keep} that stay",
                recipe.at("moe", "prune", "protect"),
            )


def _listed(
    recipe: Recipe, prune: Prune, modules: Modules, keep: int, groups: int, findings: Findings
) -> Decision | None:
    where = recipe.at("moe", "prune", "experts")
    before = len(findings.problems)
    kept = {}
    last = max(own.layer or 0 for own in modules.values() if not own.drafts)
    layers = {own.layer for own in modules.values()}
    if isinstance(prune.experts, Mapping):
        for layer in prune.experts.keys() - layers:
            findings.problem(f"layer {layer} has no routed experts", where, "leave it out")
    for root, own in modules.items():
        if isinstance(prune.experts, Mapping):
            draft = last if own.drafts and own.layer not in prune.experts else own.layer
            asked = prune.experts.get(draft or 0)
        else:
            asked = prune.experts
        if asked is None:
            findings.problem_with(f"`{root}`", "nothing is said of the experts of", where, "add it")
            continue
        chosen = tuple(sorted(set(asked)))
        if chosen and (min(chosen) < 0 or max(chosen) >= own.experts):
            findings.problem_with(
                f"`{root}`",
                f"experts {min(chosen)} to {max(chosen)} are asked for, there are {own.experts}",
                where,
                "experts are counted from 0",
            )
        size = own.experts // groups
        counts = {sum(e // size == group for e in chosen) for group in range(groups)}
        if len(chosen) != keep or (groups > 1 and len(counts) > 1):
            findings.problem_with(
                f"`{root}` ({len(chosen)})",
                f"not every layer keeps {keep} experts, as many of each group",
                where,
                "a config has one number for all layers; where the router has a bias, keep more and"
                " set theirs to -1e4",
            )
        kept[root] = chosen
    return None if len(findings.problems) > before else Decision(kept)
