"""The `search` of a recipe: what is made better, each number held against what can have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, kind_of, show
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import BASE, SCORES, Objective, Search
from mergekit_lite.recipe.scored import BLANK, files_of, scored
from mergekit_lite.recipe.text import number

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

_DATA = "write `data: {german: validation.txt}`"
_OBJECTIVE = "write `objectives: [{data: german, score: bits_per_byte}]`"


class SearchReader:
    """Reads by what a search chooses.

    Args:
        shaper: of the recipe.
    """

    def __init__(self, shaper: Shaper) -> None:
        self.shaper, self.problems = shaper, shaper.problems

    def read(self, node: Node) -> dict[str, Any]:
        """Return plain data for `Search`."""
        if not isinstance(node.value, dict):
            what = f"`search` must be a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, f"{_DATA}; {_OBJECTIVE}")
            return {}
        entries = self.shaper.known(node, keys_of(Search), "search")
        data = {key: value.plain() for key, value in entries.items() if value.value is not None}
        for key in ("data", "test"):
            if key in data:
                data[key] = self._files(entries[key])
        if "objectives" in data:
            listed = entries["objectives"]
            if not isinstance(listed.value, list):
                self.problems.add("`objectives` is no list of scores", listed.mark, _OBJECTIVE)
            known = data.get("data", {})
            data["objectives"] = [self._objective(one, known) for one in listed.items()]
        return data

    def _files(self, node: Node) -> dict[str, str]:
        if not isinstance(node.value, dict):
            self.problems.add("data maps names to files", node.mark, _DATA)
            return {}
        return files_of(node, self.problems, _DATA)

    def _objective(self, node: Node, data: Mapping[str, str]) -> dict[str, Any]:
        found = scored(self.shaper, node, Objective, "search.objectives", data, _OBJECTIVE)
        if found is None:
            return BLANK
        if found.score:
            self._known(found.score, found.entries, node)
        return found.plain(node)

    def _known(self, score: str, entries: Mapping[str, Node], node: Node) -> None:
        self._against(score, entries.get("against"), node)
        if (weight := entries.get("weight")) is not None:
            part = number(weight.value)
            if part is None or not (math.isfinite(part) and part > 0):
                what = f"`weight` must be a number above 0, not `{show(weight.value)}`"
                self.problems.add(what, weight.mark)

    def _against(self, score: str, given: Node | None, node: Node) -> None:
        experts = self.shaper.experts
        if given is None:
            if SCORES[score].against:
                hint = "add `against: base`, or the name of an expert"
                self.problems.add(f"`{score}` compares with another model", node.mark, hint)
            return
        name = show(given.value)
        if not SCORES[score].against:
            what = f"`{score}` compares with nobody, and `against` says whom"
            self.problems.add(what, given.mark, "remove it, or take the `recovery`")
        elif name != BASE and name not in experts:
            what = f"`against: {name}` is neither `base` nor an expert"
            self.problems.add(what, given.mark, nearest(name, [BASE, *experts]))
