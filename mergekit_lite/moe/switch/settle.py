"""From what a recipe says of switching experts, and headers, to the biases that change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_lite.moe.compat.check import EXPERTS, PER_TOKEN, count
from mergekit_lite.moe.grow.stored import Module, modules_of
from mergekit_lite.plan import configs
from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.inputs import View
from mergekit_lite.recipe.schema import BASE, Recipe, SwitchExperts

SWITCHED = {"off": -1e4, "on": 1e4}
"""The bias of an expert that no token chooses, and of one that all choose."""


@dataclass(frozen=True)
class Switched:
    """A routed model whose biases of choice change.

    Attributes:
        biases: name of a bias -> expert -> `off` or `on`.
        layers: the same by layer, for the card.
        experts: that each layer has.
    """

    biases: Mapping[str, Mapping[int, str]]
    layers: Mapping[int, Mapping[int, str]]
    experts: int

    def plain(self) -> dict[str, Any]:
        """Return what the card says, as plain data."""
        listed = {
            word: {
                str(layer): [expert for expert, own in chosen.items() if own == word]
                for layer, chosen in self.layers.items()
            }
            for word in SWITCHED
        }
        return {"switched": {w: {k: v for k, v in own.items() if v} for w, own in listed.items()}}


def settle(recipe: Recipe, found: Mapping[str, View], findings: Findings) -> Switched | None:
    """Return the biases that a recipe changes; None with problems noted."""
    base = found[BASE]
    if recipe.moe is None or recipe.moe.bias is None or base.settled:
        return None
    before, config = len(findings.problems), base.model.config
    modules = {own.layer: own for own in modules_of(base.tensors, config).values()}
    without = [own.root for own in modules.values() if not own.bias]
    if not modules or without:
        family = configs.model_type(config) or "unnamed"
        findings.problem(
            f"routers of a `{family}` model have no bias in the choice of experts",
            recipe.at("base"),
            "leave experts out instead: `moe: {prune: {method: listed, experts: ...}}`",
        )
        return None
    experts = count(config, EXPERTS) or next(iter(modules.values())).experts
    layers = dict(_asked(recipe.moe.bias, modules, experts, recipe, findings))
    for layer, chosen in layers.items():
        _check_layer(layer, chosen, config, experts, recipe, findings)
    if not any(layers.values()):
        findings.problem(
            "`moe.bias` switches no expert",
            recipe.at("moe", "bias"),
            "write `off: {3: [1, 5]}`: layers, and the numbers of experts in them",
        )
    if len(findings.problems) > before:
        return None
    biases = {modules[layer].bias: chosen for layer, chosen in layers.items() if chosen}
    return Switched(biases, layers, experts)


def _asked(
    bias: SwitchExperts,
    modules: Mapping[int, Module],
    experts: int,
    recipe: Recipe,
    findings: Findings,
) -> Iterator[tuple[int, dict[int, str]]]:
    """Yield layer -> expert -> `off` or `on`; what is not there is noted."""
    found: dict[int, dict[int, str]] = {}
    for word in SWITCHED:
        listed = getattr(bias, word)
        where = recipe.at("moe", "bias", word)
        if word == "on" and listed and next(iter(modules.values())).bias.endswith("router.bias"):
            findings.problem(
                "in this family the bias counts in the weight of an expert too, and one that is"
                " switched on would silence the others",
                where,
                "switch others off",
            )
        by_layer = listed if isinstance(listed, Mapping) else dict.fromkeys(modules, listed or ())
        for layer, numbers in by_layer.items():
            if layer not in modules:
                known = ", ".join(map(str, sorted(modules)))
                findings.problem(f"layer {layer} is not routed", where, f"routed are {known}")
                continue
            own = found.setdefault(layer, {})
            for number in numbers:
                if not 0 <= number < experts:
                    what = f"layer {layer} has no expert {number}"
                    findings.problem(what, where, f"experts are 0 to {experts - 1}")
                elif own.get(number, word) != word:
                    what = f"expert {number} of layer {layer} is switched both on and off"
                    findings.problem(what, where, "remove one of the two")
                else:
                    own[number] = word
    yield from sorted(found.items())


def _check_layer(
    layer: int,
    chosen: Mapping[int, str],
    config: configs.Config,
    experts: int,
    recipe: Recipe,
    findings: Findings,
) -> None:
    """Note where tokens would pass experts that are off, or cannot pass all that are on."""
    per_token = count(config, PER_TOKEN) or 1
    size, reachable = _groups(config, experts)
    off = {expert for expert, word in chosen.items() if word == "off"}
    on = {expert for expert, word in chosen.items() if word == "on"}
    starts = range(0, experts, size)
    left = sorted(size - len(off & {*range(first, first + size)}) for first in starts)
    if sum(left[:reachable]) < per_token or (reachable < len(left) and left[0] < 2):
        findings.problem(
            f"of layer {layer} too few experts would be left: a token passes {per_token}",
            recipe.at("moe", "bias", "off"),
            "switch fewer off; with groups of experts, each keeps two",
        )
    if len(on) > per_token or len({expert // size for expert in on}) > reachable:
        findings.problem(
            f"layer {layer} has more experts on than the {per_token} that a token can pass",
            recipe.at("moe", "bias", "on"),
            "switch fewer on",
        )


def _groups(config: configs.Config, experts: int) -> tuple[int, int]:
    """Return how many experts a group has, and how many groups a token reaches."""
    groups, chosen = (configs.value(config, key) for key in ("n_group", "topk_group"))
    if type(groups) is not int or groups <= 1 or experts % groups:
        return experts, 1
    return experts // groups, chosen if type(chosen) is int else groups
