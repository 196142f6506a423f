"""The `rules:` of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import nearest
from mergekit_lite.ops._spec import canonical
from mergekit_lite.recipe.layers import FORMS, parse_layers
from mergekit_lite.recipe.marks import Node, kind_of
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import ACTIONS, ROLES, Match, Rule
from mergekit_lite.recipe.steps import BASE, StepNode
from mergekit_lite.recipe.values import WEIGHT

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper


class RuleReader:
    """Reads the rules of one recipe.

    Args:
        shaper: the reader of the whole recipe.
        steps: every step outside the rules; `set` may change the parameters of their ops.
    """

    def __init__(self, shaper: Shaper, steps: list[StepNode]) -> None:
        self.shaper = shaper
        self.problems = shaper.problems
        self.steps = steps

    def read(self, nodes: list[Node]) -> list[dict[str, Any]]:
        """Return plain data for each rule that can be read."""
        rules = []
        sets: list[tuple[dict[str, Any], Node]] = []
        for node in nodes:
            if not isinstance(node.value, dict):
                what = f"a rule is a mapping, not {kind_of(node.value)}"
                self.problems.add(what, node.mark, "write `- {match: '*.mlp.*', take: base}`")
                continue
            rule = self._rule(node)
            if "set" in rule:
                sets.append((rule, node.value["set"]))
            rules.append(rule)
        for rule, node in sets:
            # Only now are the chains of all rules known.
            rule["set"] = self._set(node)
        return rules

    def _rule(self, node: Node) -> dict[str, Any]:
        entries = self.shaper.known(node, keys_of(Rule), "rules")
        rule: dict[str, Any] = {"where": str(node.mark), "match": {}}
        if "match" in entries:
            rule["match"] = self._match(entries["match"])
        else:
            hint = "add `match: '*'` or `match: {name, layers, role}`"
            self.problems.add("the rule has no `match`", node.mark, hint)
        given = [key for key in ACTIONS if key in entries]
        if len(given) != 1:
            found = f"has {' and '.join(f'`{key}`' for key in given)}" if given else "does nothing"
            hint = "give exactly one of `take`, `drop`, `steps` and `set`"
            self.problems.add(f"the rule {found}", node.mark, hint)
        for key in given:
            rule[key] = {} if key == "set" else getattr(self, f"_{key}")(entries[key])
        return rule

    def _match(self, node: Node) -> dict[str, Any]:
        if isinstance(node.value, str) and node.value:
            return {"name": node.value}
        if not isinstance(node.value, dict) or not node.value:
            what = f"`match` must be a name pattern or a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, "write `'*.mlp.*'` or `{layers: 0-4, role: mlp}`")
            return {}
        entries = self.shaper.known(node, keys_of(Match), "match")
        match: dict[str, Any] = {}
        for key, value in entries.items():
            if key == "layers":
                try:
                    match[key] = parse_layers(value.plain())
                except ValueError as error:
                    self.problems.add(str(error), value.mark, FORMS)
            elif not isinstance(value.value, str) or not value.value:
                kind = kind_of(value.value)
                self.problems.add(f"`{key}` of a match must be text, not {kind}", value.mark)
            elif key == "role" and value.value not in ROLES:
                hint = nearest(value.value, ROLES) or f"roles: {', '.join(ROLES)}"
                self.problems.add(f"unknown role `{value.value}`", value.mark, hint)
            else:
                match[key] = value.value
        # As data the ranges go in the form that the schema parses.
        return {**match, "layers": node.value["layers"].plain()} if "layers" in match else match

    def _take(self, node: Node) -> Any:
        known = (*self.shaper.chains.experts, BASE)
        if node.value not in known:
            hint = nearest(str(node.value), known) or f"known: {', '.join(known)}"
            self.problems.add(f"there is no expert `{node.value}` to take", node.mark, hint)
            return BASE
        return node.value

    def _drop(self, node: Node) -> bool:
        if node.value is not True:
            hint = "write `drop: true`, or remove the rule"
            self.problems.add("`drop` can only be true", node.mark, hint)
        return True

    def _steps(self, node: Node) -> list[dict[str, Any]]:
        steps = self.shaper.chains.read(node)
        self.shaper.checker.chain(steps, node.mark)
        self.steps = [*self.steps, *steps]
        return [step.plain() for step in steps]

    def _set(self, node: Node) -> Any:
        if not isinstance(node.value, dict):
            what = f"`set` must map parameters to values, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, "write `set: {density: 0.5}`")
            return {}
        return {self._known(key): self._parameter(key, value) for key, value in node.value.items()}

    def _known(self, key: str) -> str:
        """Return a key with the op before its dot, if there is one, under its own name."""
        op, dot, name = key.rpartition(".")
        return f"{canonical(op, self.shaper.specs)}{dot}{name}"

    def _parameter(self, key: str, node: Node) -> Any:
        reader = self.shaper.chains.reader
        if key == "weight":
            return reader.read(WEIGHT, node, "set", maps=True, also=(BASE,))
        specs = self.shaper.specs
        played = {step.op for step in self.steps} | {
            part.spec.name
            for step in self.steps
            for part in self.shaper.checker.parts([step]) or ()
        }
        owners = {name: specs[name] for name in sorted(played & specs.keys())}
        op, dot, name = self._known(key).rpartition(".")
        if dot and op not in owners:
            hint = nearest(op, owners) or f"ops of this recipe: {', '.join(owners)}"
            self.problems.add(f"no chain of this recipe has the op `{op}`", node.key, hint)
            return None
        having = [s for n, s in owners.items() if name in s.parameters and (not dot or n == op)]
        if not having:
            known = {f"{n}.{p}" if dot else p for n, s in owners.items() for p in s.parameters}
            hint = nearest(key, sorted(known | {"weight"}))
            listed = f"they have {', '.join(sorted(known | {'weight'}))}"
            what = f"no op of this recipe has a parameter `{key}`"
            self.problems.add(what, node.key, hint or listed)
            return None
        values = [
            reader.read(
                spec.parameters[name],
                node,
                spec.name,
                maps=spec.parameters[name].per_expert or spec.kind == "transform",
            )
            for spec in having
        ]
        return values[0]
