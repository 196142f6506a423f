"""The `grow` of a recipe's `moe`: experts that are added to a routed base."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mergekit_lite.recipe.marks import Node, kind_of
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import BASE, Addition, Grow

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

_BESIDE = ("grow", "experts_per_token", "for_training")
_EXAMPLE = "write `moe: {grow: [{expert: NAME, take: [1]}]}`"


class GrowReader:
    """Reads which experts are added to a routed base.

    Args:
        shaper: of the recipe.
        moe: the node of `moe`.
        name_of: returns the name of an input, noting one that there is not.
    """

    def __init__(self, shaper: Shaper, moe: Node, name_of: Callable[[Node, str], str]) -> None:
        self.shaper, self.moe, self.name_of = shaper, moe, name_of
        self.problems = shaper.problems

    def read(self, node: Node) -> dict[str, Any]:
        """Return plain data for `Grow`."""
        self._check_beside()
        data: dict[str, Any] = {}
        listed: Node | None = node
        if isinstance(node.value, dict):
            entries = self.shaper.known(node, keys_of(Grow), "moe.grow")
            data = {key: value.plain() for key, value in entries.items() if value.value is not None}
            listed = entries.get("experts")
        if listed is None or not isinstance(listed.value, list) or not listed.items():
            kind = "nothing" if listed is None or listed.value == [] else kind_of(listed.value)
            what = f"`moe.grow` must list the experts that are added, not {kind}"
            self.problems.add(what, node.mark, _EXAMPLE)
            return {**data, "experts": []}
        return {**data, "experts": [self._addition(entry) for entry in listed.items()]}

    def _addition(self, node: Node) -> dict[str, Any]:
        where = str(node.mark)
        if not isinstance(node.value, dict):
            return {"expert": self.name_of(node, "moe.grow"), "where": where}
        entries = self.shaper.known(node, keys_of(Addition), "moe.grow")
        data = {key: value.plain() for key, value in entries.items() if value.value is not None}
        if "expert" not in entries:
            what = "an entry of `moe.grow` does not say whose experts are added"
            self.problems.add(what, node.mark, _EXAMPLE)
            return {"expert": BASE, "where": where}
        data["expert"] = self.name_of(entries["expert"], "moe.grow.expert")
        if type(data.get("take")) is int:
            data["take"] = [data["take"]]
        return {**data, "where": where}

    def _check_beside(self) -> None:
        """Refuse what would change weights that are only moved."""
        for key in ("steps", "rules", "vocab", "head"):
            other = self.shaper.root.get(key)
            if other is not None and other.value is not None:
                what = f"`moe.grow` and `{key}` do not go together"
                hint = "merge in a stage, and write `base: '@STAGE'` in the recipe that grows"
                self.problems.add(what, other.key, hint)
        for key, value in self.moe.entries().items():
            if key not in _BESIDE and value.value is not None:
                what = f"`moe.grow` and `moe.{key}` do not go together"
                self.problems.add(what, value.key, "do one of them in a recipe of its own")
