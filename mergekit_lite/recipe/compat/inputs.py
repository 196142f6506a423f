"""The models of a mergekit recipe: which of them is the base, and how the others are called."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from mergekit_lite.recipe.compat.nodes import listed, mapping, scalar
from mergekit_lite.recipe.compat.references import Reference, name_for
from mergekit_lite.recipe.marks import Node

BASE = "base"


@dataclass
class Models:
    """Names the models of one recipe as they are met.

    Attributes:
        base: the model that is called `base`.
        experts: the others by name.
        stages: recipes of models that are a base with an adapter, by name.
    """

    base: Reference
    experts: dict[str, Reference] = field(default_factory=dict)
    stages: dict[str, Node] = field(default_factory=dict)

    @classmethod
    def around(cls, base: Reference | None, first: Reference) -> Models:
        """Return the models of a recipe: the first is the base where none is named."""
        return cls(base or bare(first))

    def find(self, reference: Reference) -> str | None:
        """Return the name of a model, None for one that was not met."""
        if reference.same(self.base):
            return BASE
        return next((name for name, it in self.experts.items() if it.same(reference)), None)

    def name(self, reference: Reference) -> str:
        """Return the name of a model, which is given one when it is met first."""
        if known := self.find(reference):
            return known
        name = name_for(reference, [*self.experts, *self.stages])
        self.experts[name] = reference
        return name

    def keep(self, names: Collection[str]) -> None:
        """Forget the experts that are neither among `names` nor results of stages."""
        self.experts = {
            name: it for name, it in self.experts.items() if name in names or it.is_stage
        }

    def expert(self, name: str) -> Node:
        """Return the entry of an expert, without its weight."""
        reference = self.experts[name]
        mark = reference.mark
        if not reference.lora:
            return mapping({"model": scalar(reference.model, mark)}, mark)
        if (reference.identity[0], "") == self.base.identity:
            return mapping({"lora": scalar(reference.lora, mark)}, mark)
        return mapping({"model": self._stage(name, reference)}, mark)

    def base_node(self) -> Node:
        """Return the recipe's `base`."""
        if not self.base.lora:
            return scalar(self.base.model, self.base.mark)
        return self._stage(name_for(self.base, [*self.experts, *self.stages]), self.base)

    def _stage(self, name: str, reference: Reference) -> Node:
        """Return the name of a stage that adds a model's adapter to it."""
        mark = reference.mark
        expert = mapping({"lora": scalar(reference.lora, mark)}, mark)
        step = mapping({"passthrough": mapping({"source": scalar("adapter", mark)}, mark)}, mark)
        self.stages[name] = mapping(
            {
                "base": scalar(reference.model, mark),
                "experts": mapping({"adapter": expert}, mark),
                "steps": listed([step], mark),
            },
            mark,
        )
        return scalar(f"@{name}", mark)


def bare(reference: Reference) -> Reference:
    """Return a model without its adapter."""
    return replace(reference, lora="", identity=(reference.identity[0], ""))
