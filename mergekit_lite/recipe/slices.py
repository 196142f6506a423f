"""The `slices:` of a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.layers import FORMS, parse_layers
from mergekit_lite.recipe.marks import Node, kind_of
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import Slice
from mergekit_lite.recipe.steps import BASE, StepNode

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

_EXAMPLE = "write `- {take: base, layers: 0-7}` or `- {layers: {base: 0-7, NAME: 4-11}}`"


class SliceReader:
    """Reads the slices of one recipe.

    Attributes:
        steps: every step of the slices read so far; `set` of a rule may change their parameters.
    """

    def __init__(self, shaper: Shaper) -> None:
        self.shaper = shaper
        self.problems = shaper.problems
        self.known = (*shaper.chains.experts, BASE)
        self.steps: list[StepNode] = []

    def read(self, nodes: list[Node]) -> list[dict[str, Any]]:
        """Return plain data for each slice that can be read."""
        slices = []
        for node in nodes:
            if isinstance(node.value, dict):
                slices.append(self._slice(node))
            else:
                what = f"a slice is a mapping, not {kind_of(node.value)}"
                self.problems.add(what, node.mark, _EXAMPLE)
        return slices

    def _slice(self, node: Node) -> dict[str, Any]:
        entries = self.shaper.known(node, keys_of(Slice), "slices")
        found: dict[str, Any] = {"where": str(node.mark), "layers": {}}
        if "stack" in entries:
            found["stack"] = entries["stack"].plain()
        take = self._name(entries["take"]) if "take" in entries else None
        found["take"] = take
        if "layers" in entries:
            found["layers"] = self._layers(entries["layers"], take)
        else:
            self.problems.add("the slice has no `layers`", node.mark, _EXAMPLE)
        if "steps" in entries:
            found["steps"] = self._steps(entries["steps"], tuple(found["layers"]))
        if "steps" in entries and "take" in entries:
            what = "the slice has both `take` and `steps`"
            hint = "layers that are taken are not computed; `layers: {NAME: ...}` with `steps` is"
            self.problems.add(what, entries["take"].key, hint)
        return found

    def _name(self, node: Node) -> Any:
        if node.value not in self.known:
            hint = nearest(str(node.value), self.known) or f"known: {', '.join(self.known)}"
            what = f"there is no expert `{node.value}` to take layers from"
            self.problems.add(what, node.mark, hint)
            return BASE
        return node.value

    def _layers(self, node: Node, take: str | None) -> dict[str, Any]:
        """Return ranges by input, in the form that the schema parses."""
        if isinstance(node.value, dict):
            return self._by_input(node, take)
        if take is None:
            what = "the slice does not say whose layers these are"
            self.problems.add(what, node.mark, _EXAMPLE)
        return self._ranges(take or BASE, node)

    def _by_input(self, node: Node, take: str | None) -> dict[str, Any]:
        if not node.value:
            self.problems.add("`layers` names no input", node.mark, _EXAMPLE)
        if take is not None and take not in node.value:
            what = f"the slice takes `{take}`, of which it names no layers"
            self.problems.add(what, node.mark, f"write `layers: {{{take}: 0-7}}` or just `0-7`")
        found: dict[str, Any] = {}
        for name, ranges in node.value.items():
            if name not in self.known:
                hint = nearest(name, self.known) or f"known: {', '.join(self.known)}"
                self.problems.add(f"there is no expert `{name}`", ranges.key, hint)
            else:
                found |= self._ranges(name, ranges)
        return found

    def _ranges(self, name: str, node: Node) -> dict[str, Any]:
        try:
            if not parse_layers(node.plain()):
                raise ValueError("`outside` names no layers")
        except ValueError as error:
            self.problems.add(str(error), node.mark, FORMS)
            return {}
        return {name: node.plain()}

    def _steps(self, node: Node, members: tuple[str, ...]) -> list[dict[str, Any]]:
        steps = self.shaper.chains.read(node)
        experts = tuple(name for name in self.shaper.chains.experts if name in members)
        replace(self.shaper.checker, experts=experts).chain(steps, node.mark)
        self.steps += steps
        return [step.plain() for step in steps]
