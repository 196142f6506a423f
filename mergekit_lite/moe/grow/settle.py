"""From what a recipe adds to a routed base, and headers, to the experts of the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_lite.moe.assembly import FeedForward
from mergekit_lite.moe.grow.config import settings
from mergekit_lite.moe.grow.donors import DonorCheck
from mergekit_lite.moe.grow.stored import Module, modules_of
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import BASE, Addition, Grow, Recipe


@dataclass(frozen=True)
class Added:
    """One expert that every layer gets.

    Attributes:
        source: the input that it is of.
        number: of the expert there, None of a dense model.
        silent: no token chooses it.
    """

    source: str
    number: int | None
    silent: bool


@dataclass(frozen=True)
class Growth:
    """A routed model that experts are added to.

    Attributes:
        grow: what the recipe says.
        modules: the base's routed modules, by name.
        added: what each gets, in order.
        donors: routed modules of other models that lend experts, by input and the base's module.
        dense: feed-forward layers of dense models that become experts, by input.
        config: entries of the config that change.
        same: tensors that must be the base's bit for bit, by input: (base's name, its own name).
    """

    grow: Grow
    modules: Mapping[str, Module]
    added: tuple[Added, ...]
    donors: Mapping[str, Mapping[str, Module]]
    dense: Mapping[str, FeedForward]
    config: Mapping[str, Any]
    same: Mapping[str, tuple[tuple[str, str], ...]]

    @property
    def before(self) -> int:
        """Experts of each layer of the base."""
        return next(iter(self.modules.values())).experts

    def plain(self) -> dict[str, Any]:
        """Return what the manifest says, as plain data."""
        return {
            "grown": {
                "experts_before": self.before,
                "added": [
                    {
                        "number": self.before + index,
                        "model": one.source,
                        **({} if one.number is None else {"expert": one.number}),
                        "router": "silent" if one.silent else "own",
                    }
                    for index, one in enumerate(self.added)
                ],
                "modules": list(self.modules),
                "same": {name: [list(pair) for pair in pairs] for name, pairs in self.same.items()},
            }
        }


def set_aside(recipe: Recipe, found: Mapping[str, View]) -> None:
    """Take models that lend experts out of the comparison with the base, tensor by tensor."""
    if recipe.moe is None or recipe.moe.grow is None:
        return
    for name in {one.expert for one in recipe.moe.grow.experts} - {BASE}:
        view = found.get(name)
        if view is not None and not view.settled and view.model.adapter is None:
            view.settled, view.base, view.spare = True, {}, set(view.tensors)


def settle(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Growth | None:
    """Return what a routed base becomes; None with problems noted."""
    if recipe.moe is None or recipe.moe.grow is None:
        return None
    before, base, grow = len(findings.all_problems()), found[BASE], recipe.moe.grow
    modules = modules_of(base.tensors, base.model.config)
    _check_base(recipe, base, modules, findings)
    if len(findings.all_problems()) > before:
        return None
    check = DonorCheck(recipe, base, modules, findings)
    added: list[Added] = []
    donors: dict[str, Mapping[str, Module]] = {}
    dense: dict[str, FeedForward] = {}
    for one in grow.experts:
        view = found.get(one.expert)
        if view is None:
            continue
        view.settled, view.used = False, view.used + 1
        own = modules if view.is_base else check.routed(view)
        if own:
            donors[BASE if view.is_base else one.expert] = own
            check.numbers(one, own)
        elif feed := check.dense(view, one):
            dense[one.expert] = feed
        added += _added(one, bool(own), view)
    check.silence(added_silent=[one for one in grow.experts if _is_silent(one, found)])
    taken = {name: {a.number for a in added if a.source == name} for name in donors}
    same = {
        name: tuple(check.shared(found[name], own, taken[name]))
        for name, own in donors.items()
        if grow.rest == "same" and not found[name].is_base
    }
    config = settings(recipe, base.model.config, _experts(modules), len(added), findings)
    if len(findings.all_problems()) > before:
        return None
    return Growth(grow, modules, tuple(added), donors, dense, config, same)


def _experts(modules: Mapping[str, Module]) -> int:
    return next(iter(modules.values())).experts


def _is_silent(one: Addition, found: Mapping[str, View]) -> bool:
    """Return whether tokens are kept from an addition; only experts of other routed models have
    routers that know them."""
    if one.router is not None:
        return one.router == "silent"
    view = found.get(one.expert)
    return view is not None and (view.is_base or not one.take)


def _added(one: Addition, routed: bool, view: View) -> Iterator[Added]:
    silent = _is_silent(one, {one.expert: view})
    numbers = one.take if routed else (None,)
    for number in numbers:
        yield Added(BASE if view.is_base else one.expert, number, silent)


def _check_base(
    recipe: Recipe, base: View, modules: Mapping[str, Module], findings: Findings
) -> None:
    where = recipe.at("base")
    if not modules:
        findings.problem(
            "the base has no routed experts that more could be added to",
            where,
            "name a routed model as `base`; `moe` without `grow` makes one of dense models",
        )
        return
    if len({own.experts for own in modules.values()}) > 1:
        findings.problem(
            "layers of the base have different numbers of experts", where, "take another base"
        )
    depth = configs.value(base.model.config, "num_hidden_layers")
    drafts = [own.root for own in modules.values() if type(depth) is int and own.layer >= depth]
    if drafts:
        findings.problem(
            f"the base has routed layers that draft tokens ahead, such as `{drafts[0]}`, which"
            " would have to grow too",
            where,
            "leave them out first: `rules: [{match: ..., drop: true}]` in a recipe of its own",
        )
