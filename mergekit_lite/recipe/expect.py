"""The `expect` of a recipe: bounds on scores, each held against what can be known of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, kind_of, show
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import BASE, BASELINE, SCORES, Bound, Expect
from mergekit_lite.recipe.scored import BLANK, files_of, scored
from mergekit_lite.recipe.text import number

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

_DATA = "write `data: {german: heldout.txt}`"
_BOUND = "write `bounds: [{data: german, score: recovery, against: base, at_least: 1}]`"


class ExpectReader:
    """Reads what must hold of a recipe's result.

    Args:
        shaper: of the recipe.
    """

    def __init__(self, shaper: Shaper) -> None:
        self.shaper, self.problems = shaper, shaper.problems

    def read(self, node: Node) -> dict[str, Any]:
        """Return plain data for `Expect`."""
        if not isinstance(node.value, dict):
            what = f"`expect` must be a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, f"{_DATA}; {_BOUND}")
            return {"data": {}, "bounds": [BLANK]}
        entries = self.shaper.known(node, keys_of(Expect), "expect")
        data = {key: value.plain() for key, value in entries.items() if value.value is not None}
        data["data"] = self._data(entries.get("data"), node)
        listed = entries.get("bounds")
        if listed is None or not isinstance(listed.value, list) or not listed.items():
            what = "`expect` has no `bounds`" if listed is None else "`bounds` is no list of bounds"
            self.problems.add(what, (listed or node).mark, _BOUND)
            return {**data, "bounds": [BLANK]}
        has_baseline = "baseline" in data
        data["bounds"] = [self._bound(one, data["data"], has_baseline) for one in listed.items()]
        return data

    def _data(self, node: Node | None, around: Node) -> dict[str, str]:
        if node is None or not isinstance(node.value, dict) or not node.value:
            what = "`expect` names no `data`" if node is None else "`data` maps names to files"
            self.problems.add(what, (node or around).mark, _DATA)
            return {}
        return files_of(node, self.problems, _DATA)

    def _bound(self, node: Node, data: Mapping[str, str], has_baseline: bool) -> dict[str, Any]:
        found = scored(self.shaper, node, Bound, "expect.bounds", data, _BOUND)
        if found is None:
            return BLANK
        if found.score:
            self._against(found.score, found.entries, node, has_baseline)
            self._limit(found.score, found.entries, node)
        return found.plain(node)

    def _against(
        self, score: str, entries: Mapping[str, Node], node: Node, has_baseline: bool
    ) -> None:
        wanted, given = SCORES[score].against, entries.get("against")
        experts = self.shaper.experts
        if given is None:
            if wanted:
                hint = "add `against: base`, or the name of an expert"
                self.problems.add(f"`{score}` compares with another model", node.mark, hint)
            return
        name = show(given.value)
        if not wanted:
            what = f"`{score}` compares with nobody, and `against` says whom"
            self.problems.add(what, given.mark, "remove it, or bound the `recovery`")
        elif name == BASELINE and BASELINE not in experts:
            if not has_baseline:
                hint = "write `expect: {baseline: scores.json}`"
                self.problems.add("there is no `baseline` to compare with", given.mark, hint)
            elif wanted == "parent":
                what = f"`{score}` looks at each token, and a baseline holds scores alone"
                self.problems.add(what, given.mark, "take `base` or an expert")
        elif name != BASE and name not in experts:
            what = f"`against: {name}` is neither `base`, an expert nor `baseline`"
            self.problems.add(what, given.mark, nearest(name, [BASE, BASELINE, *experts]))

    def _limit(self, score: str, entries: Mapping[str, Node], node: Node) -> None:
        right, wrong = ("at_least", "at_most") if SCORES[score].rises else ("at_most", "at_least")
        if wrong in entries:
            better = "more" if SCORES[score].rises else "less"
            what = f"of `{score}` {better} is better, so `{wrong}` bounds nothing"
            self.problems.add(what, entries[wrong].key, f"write `{right}: ...`")
        elif right not in entries:
            self.problems.add(f"the bound has no `{right}`", node.mark, _BOUND)
        else:
            limit = number(entries[right].value)
            if limit is None or not math.isfinite(limit):
                what = f"`{right}` must be a number, not `{show(entries[right].value)}`"
                self.problems.add(what, entries[right].mark)
