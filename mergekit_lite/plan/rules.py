"""Which rule of a recipe decides about which tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mergekit_lite.plan.findings import Findings
from mergekit_lite.plan.names import plural
from mergekit_lite.recipe.layers import format_layers
from mergekit_lite.recipe.schema import Match, Recipe, RecipeStep, Rule


@dataclass(frozen=True)
class Decision:
    """What a recipe says about one tensor, before any value is resolved.

    Attributes:
        action: `take`, `drop` or `steps`.
        take: expert's name or `base`, for `take`.
        steps: the chain, for `steps`.
        sets: the `set` of every rule that matches, in order.
        where: place in the recipe of what won.
        why: what won, in words.
        matched: indices of all rules that match.
        winner: index of the rule that won, None where none did.
    """

    action: Literal["take", "drop", "steps"]
    take: str
    steps: tuple[RecipeStep, ...]
    sets: tuple[Mapping[str, Any], ...]
    where: str
    why: str
    matched: tuple[int, ...]
    winner: int | None

    def __str__(self) -> str:
        return f"{self.where} {self.why}"


class Rules:
    """The rules of one recipe, counting which of them match.

    Args:
        recipe: whose rules and default chain decide.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.hits = [0] * len(recipe.rules)
        self._known: dict[tuple[tuple[int, ...], int | None], Decision] = {}

    def decide(
        self, name: str, layer: int | None, role: str, slice_: int | None = None
    ) -> Decision:
        """Return what happens to the tensor of this name, layer, role and slice of the recipe."""
        matched = tuple(
            index
            for index, rule in enumerate(self.recipe.rules)
            if rule.match.matches(name, layer, role)
        )
        for index in matched:
            self.hits[index] += 1
        if (matched, slice_) not in self._known:
            self._known[matched, slice_] = self._decision(matched, slice_)
        return self._known[matched, slice_]

    def _decision(self, matched: tuple[int, ...], slice_: int | None) -> Decision:
        rules = self.recipe.rules
        sets = tuple(s for i in matched if (s := rules[i].set) is not None)
        winner = next((i for i in reversed(matched) if rules[i].set is None), None)
        if winner is None and slice_ is not None:
            part = self.recipe.slices[slice_]
            where = part.where or self.recipe.at("slices", slice_)
            chain = self.recipe.steps if part.steps is None else part.steps
            why = f"slice {slice_ + 1}"
            action: Literal["take", "steps"] = "steps" if part.take is None else "take"
            return Decision(action, part.take or "", chain, sets, where, why, matched, None)
        if winner is None:
            where, why = self.recipe.at("steps"), "the recipe's steps"
            return Decision("steps", "", self.recipe.steps, sets, where, why, matched, None)
        rule = rules[winner]
        where = rule.where or self.recipe.at("rules", winner)
        why = f"{describe(rule)} for {describe_match(rule.match)}"
        if rule.drop:
            return Decision("drop", "", (), sets, where, why, matched, winner)
        if rule.take is not None:
            return Decision("take", rule.take, (), sets, where, why, matched, winner)
        return Decision("steps", "", rule.steps or (), sets, where, why, matched, winner)


def describe(rule: Rule) -> str:
    """Return what a rule does, in a few words."""
    if rule.drop:
        return "drop"
    if rule.take is not None:
        return f"take {rule.take}"
    if rule.steps is not None:
        return "steps " + " -> ".join(step.op for step in rule.steps)
    return "set " + ", ".join(f"{key} {value}" for key, value in (rule.set or {}).items())


def describe_match(match: Match) -> str:
    """Return which tensors a rule is about, in a few words."""
    parts = []
    if match.name is not None:
        parts.append(f"`{match.name}`")
    if match.layers is not None:
        ranges = format_layers(match.layers)
        parts.append(f"layers {ranges}" if match.layers else "outside the layers")
    if match.role is not None:
        parts.append(f"role {match.role}")
    return ", ".join(parts) or "every tensor"


def layer_span(layers: int) -> str:
    """Return `32 layers (0-31)`."""
    return f"{plural(layers, 'layer')} (0-{layers - 1})" if layers else "no layers"


def check_rules(rules: Rules, layers: int, findings: Findings, names: Iterable[str]) -> None:
    """Note rules that match nothing and layers that the model does not have.

    Args:
        rules: after every tensor was decided.
        layers: number of layers of the base.
        findings: where to note it.
        names: the base's tensors, of which the nearest is offered.
    """
    known = list(names)
    for index, rule in enumerate(rules.recipe.rules):
        where = rule.where or rules.recipe.at("rules", index)
        asked = rule.match.layers or ()
        beyond = [last if last is not None else first for first, last in asked]
        if any(layer >= layers for layer in beyond):
            findings.problem(
                f"the model has {layer_span(layers)}, asked {format_layers(asked)}",
                where,
                "layers are counted from 0",
            )
        elif not rules.hits[index]:
            _matches_nothing(rules.recipe, rule.match, where, known, findings)


def _matches_nothing(
    recipe: Recipe, match: Match, where: str, known: Sequence[str], findings: Findings
) -> None:
    what = f"the rule matches no tensor: {describe_match(match)}"
    if recipe.compat == "mergekit":  # there, a filter that fits nothing is read past
        findings.warn(what, where)
        return
    example = f", such as `{known[len(known) // 2]}`" if known else ""
    hint = f"patterns must fit whole names{example}; remove the rule if it is not needed"
    findings.problem(what, where, hint)
