"""Gives the tensors of every expert the names that the base has for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from mergekit_lite.checkpoint import layer_of
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.plan.names import Prefix, few, plural, prefixes_between
from mergekit_lite.plan.routed.adapters import match_adapter
from mergekit_lite.plan.routed.match import match_expert_layout
from mergekit_lite.recipe.renames import Renaming, in_scope
from mergekit_lite.recipe.schema import Recipe
from mergekit_lite.sources import Model

_ROUNDS = 4  # a model may change the prefix of each of its parts

T = TypeVar("T")


def name_experts(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> None:
    """Rename the tensors of every expert, and leave out those beyond its scope.

    What was matched by a change of prefix is told as a warning; what could be matched in several
    ways is a problem.
    """
    base = found["base"]
    for index, pattern in enumerate(recipe.scope):
        _check_scope(pattern, base, findings, recipe.at("scope", index))
    for name, view in found.items():
        if name == "base" or view.model.unreadable:
            continue
        expert = recipe.experts[name]
        view.scope, view.named = expert.scope or recipe.scope, bool(expert.rename)
        for index, pattern in enumerate(expert.scope):
            _check_scope(pattern, base, findings, recipe.at("experts", name, "scope", index))
        if not view.is_base:
            _rename(recipe, view, findings)
            _map_prefixes(view, base, findings, recipe.at("experts", name))
            match_expert_layout(view, base, findings, recipe.at("experts", name))
            match_adapter(view, base, findings, recipe.at("experts", name))
        if view.scope:
            _narrow(view, findings, recipe.at("experts", name))


def _check_scope(pattern: str, base: View, findings: Findings, where: str) -> None:
    if not any(in_scope(name, [pattern]) for name in base.tensors):
        names = list(base.tensors)
        findings.problem(
            f"the scope `{pattern}` matches no tensor of the base",
            where,
            f"patterns fit whole names, such as `{names[len(names) // 2]}`, or name a module",
        )


def names_of(model: Model) -> list[str]:
    """Return the names of what a model or an adapter has to say something about."""
    adapter = model.adapter
    return [*adapter.factors, *adapter.replaced] if adapter else list(model.header.tensors)


def renamed(model: Model, rename: Callable[[str], str | None]) -> Model:
    """Return a model whose tensors have other names; those renamed to None are left out.

    Args:
        model: a checkpoint, of which each tensor remembers the name it is stored under, or an
            adapter.
        rename: from a name to its new one.
    """

    def keys(values: Mapping[str, T]) -> dict[str, T]:
        pairs = ((rename(name), value) for name, value in values.items())
        return {name: value for name, value in pairs if name is not None}

    adapter = model.adapter
    if adapter is None:
        return replace(model, header=replace(model.header, tensors=keys(model.header.tensors)))
    changed = replace(
        adapter,
        factors=keys(adapter.factors),
        replaced=keys(adapter.replaced),
        shapes=keys(adapter.shapes),
    )
    return replace(model, adapter=changed)


def _rename(recipe: Recipe, view: View, findings: Findings) -> None:
    rules = recipe.experts[view.name].rename
    if not rules:
        return
    where = recipe.at("experts", view.name, "rename")
    renaming = Renaming(rules)
    names = names_of(view.model)
    made: dict[str, list[str]] = {}
    for name in names:
        made.setdefault(renaming(name), []).append(name)
    for pattern in rules:
        if pattern not in renaming.used:
            findings.problem(
                f"`{pattern}` renames no tensor of expert `{view.name}`",
                recipe.at("experts", view.name, "rename", pattern),
                f"its names are such as `{names[len(names) // 2]}`" if names else "",
            )
    for name, several in made.items():
        if len(several) > 1:
            what = f"expert `{view.name}`: {few(several)} would all be called `{name}`"
            findings.problem(what, where, "give each a name of its own")
            view.settled = True
    if not view.settled:
        view.model = renamed(view.model, renaming)


def _map_prefixes(view: View, base: View, findings: Findings, where: str) -> None:
    """Match names that differ from the base's by what they begin with."""
    for _ in range(_ROUNDS):
        names = names_of(view.model)
        extra = [name for name in names if name not in base.tensors]
        own = set(names)
        missing = [n for n in base.tensors if n not in own and view.in_scope(n)]
        found = prefixes_between(missing, extra)
        if not found or not _is_telling(found[0], missing, extra):
            return
        best = found[0]
        rivals = [p for p in found[1:] if p.matched == best.matched and _clash(p, best, extra)]
        if rivals:
            ways = few([p.as_rename for p in (best, *rivals)])
            findings.problem(
                f"expert `{view.name}`: its names fit the base's in several ways: {ways}",
                where,
                "say which is meant by `rename: {PATTERN: REPLACEMENT}`, or by a `scope`",
            )
            view.settled = True
            return
        _apply(view, best, own, extra)
        mine, theirs = best.example
        findings.warn(
            f"expert `{view.name}`: {best}; {plural(best.matched, 'tensor')} matched that way, such"
            f" as `{mine}` as `{theirs}`",
            where,
        )
        view.prefixes.append(best)


def _is_telling(prefix: Prefix, missing: Iterable[str], extra: list[str]) -> bool:
    """Return whether a prefix explains so much that it cannot be an accident."""
    wanted = set(missing)
    if 2 * prefix.matched < min(len(wanted), len(extra)):
        return False
    ends = [name.removeprefix(prefix.strip) for name in extra if prefix.maps(name, wanted)]
    layered = any(layer_of(name) is not None for name in extra)
    # Two heads that happen to have a weight each are not one head under two names.
    return any(layer_of(end) is not None for end in ends) if layered else prefix.matched > 2


def _clash(one: Prefix, other: Prefix, extra: list[str]) -> bool:
    """Return whether two changes of prefix are about the same of an expert's tensors."""
    return any(name.startswith(one.strip) and name.startswith(other.strip) for name in extra)


def _apply(view: View, prefix: Prefix, own: set[str], extra: list[str]) -> None:
    changing = {n: prefix.add + n[len(prefix.strip) :] for n in extra if n.startswith(prefix.strip)}
    free = {name: made for name, made in changing.items() if made not in own}
    view.model = renamed(view.model, lambda name: free.get(name, name))


def _narrow(view: View, findings: Findings, where: str) -> None:
    """Leave out what an expert has beyond its scope."""
    outside = [n for n in names_of(view.model) if n in view.base and not view.in_scope(n)]
    view.base = {name: info for name, info in view.base.items() if view.in_scope(name)}
    gone = set(outside)
    view.model = renamed(view.model, lambda name: None if name in gone else name)
    if not outside or view.is_base:
        return
    findings.warn(
        f"expert `{view.name}` has {plural(len(outside), 'tensor')} beyond its scope, left as in"
        f" the base: {few(outside)}",
        where,
    )
