"""Reads `output.lora`: an adapter in place of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergekit_lite.recipe.marks import Node, kind_of
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import LoraOutput

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

_SHORT = {"tsv": "tsv_merge"}
"""What the field calls an op when it stands inside another method."""


class LoraReader:
    """The part of a recipe under `output.lora`."""

    def __init__(self, shaper: Shaper) -> None:
        self.shaper = shaper
        output = shaper.root.get("output")
        found = output.get("lora") if output is not None else None
        self.node = found if found is not None and found.value is not None else None

    def steps(self, entries: Mapping[str, Node]) -> Node | None:
        """Return the chain of the recipe: `steps`, or what `inner` says in its place."""
        inner = self.node.get("inner") if self.node is not None else None
        if inner is None or inner.value is None:
            return entries.get("steps")
        if "steps" in entries:
            what = "`output.lora.inner` and `steps` say the same thing, and both are given"
            self.shaper.problems.add(what, inner.mark, "keep one of them")
        if isinstance(inner.value, list):
            return inner
        if isinstance(inner.value, str):
            inner = inner.with_value(_SHORT.get(inner.value, inner.value))
        elif isinstance(inner.value, dict):
            named = {_SHORT.get(name, name): node for name, node in inner.value.items()}
            inner = inner.with_value(named)
        return inner.with_value([inner])

    def read(self) -> dict[str, Any]:
        """Return plain data for `LoraOutput`."""
        node = self.node
        if node is None or not isinstance(node.value, dict):
            kind = kind_of(node.value) if node is not None else "nothing"
            what = f"`output.lora` must be a mapping, not {kind}"
            mark = node.mark if node is not None else self.shaper.root.mark
            self.shaper.problems.add(what, mark, "write `lora: {method: core_space, rank: 32}`")
            return {}
        known = self.shaper.known(node, [*keys_of(LoraOutput), "inner"], "output.lora")
        return {name: value.plain() for name, value in known.items() if name != "inner"}
