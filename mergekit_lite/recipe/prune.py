"""The `prune` of a recipe's `moe`: which experts of a routed base stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, kind_of, show
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import Prune, PruneMethod

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

NEEDS = {
    **dict.fromkeys(
        ("frequency", "gate", "ean", "man", "msan", "max_activation", "reap", "easy_ep", "naee"),
        "stats",
    ),
    "router_norm": "pretrained",
    "router_change": "pretrained",
    "listed": "experts",
}
"""What methods cannot do without."""
_GIVE = {
    "stats": "make them with `mergekit-lite calibrate BASE --data FILE --collect rates -o STATS`",
    "pretrained": "name the expert of this recipe that is the model before its tuning",
    "experts": "write `experts: [0, 2, 5]`, or a map from layers to such lists",
}
_BESIDE = ("prune", "experts_per_token")
_EXAMPLE = "write `moe: {prune: {keep: 0.5, method: reap, stats: FOLDER}}`"


class PruneReader:
    """Reads which experts of a routed base stay.

    Args:
        shaper: of the recipe.
        moe: the node of `moe`.
    """

    def __init__(self, shaper: Shaper, moe: Node) -> None:
        self.shaper, self.moe, self.problems = shaper, moe, shaper.problems

    def read(self, node: Node) -> dict[str, Any]:
        """Return plain data for `Prune`."""
        if not isinstance(node.value, dict):
            what = f"`moe.prune` must be a mapping, not {kind_of(node.value)}"
            self.problems.add(what, node.mark, _EXAMPLE)
            return {"keep": 1}
        self._check_beside()
        entries = self.shaper.known(node, keys_of(Prune), "moe.prune")
        entries = {key: value for key, value in entries.items() if value.value is not None}
        data = {key: value.plain() for key, value in entries.items()}
        method = data.setdefault("method", "reap")
        known = get_args(PruneMethod)
        if method not in known:
            what = f"`moe.prune.method: {show(method)}` is no way to choose experts"
            hint = nearest(method, known) or f"known here: {', '.join(known)}"
            self.problems.add(what, entries["method"].mark, hint)
            return {**data, "method": known[0]}
        needed = NEEDS.get(method)
        if needed and needed not in data:
            what = f"`{method}` needs `{needed}`"
            self.problems.add(what, node.mark, _GIVE[needed])
        for key in ("pretrained", "experts"):
            if key in data and needed != key:
                what = f"`{key}` says nothing to the method `{method}`"
                self.problems.add(what, entries[key].key, "remove it, or take another method")
        if ("keep" in data) == (method == "listed"):
            what = "`keep` and `experts` both say how many stay" if "keep" in data else "no `keep`"
            self.problems.add(what, node.mark, "`listed` has `experts`, all other methods `keep`")
        if data.get("protect", "none") != "none" and method == "naee":
            what = "`naee` looks at whole subsets, and has no place for experts that stay anyway"
            self.problems.add(what, entries["protect"].key, "remove `protect`")
        if data.get("protect", "none") != "none" and "stats" not in data:
            what = "what to protect is told from measured activations, and there is no `stats`"
            self.problems.add(what, entries["protect"].key, _GIVE["stats"])
        self._check_pretrained(entries, data)
        return data

    def _check_pretrained(self, entries: dict[str, Node], data: dict[str, Any]) -> None:
        name, experts = data.get("pretrained"), self.shaper.experts
        if name is not None and name not in experts:
            what = f"`pretrained: {show(name)}` is no expert of this recipe"
            hint = nearest(name, experts) or "write `experts: {before: MODEL}` and name it here"
            self.problems.add(what, entries["pretrained"].mark, hint)
        for other in experts.keys() - {name}:
            what = f"expert `{other}` has no part in leaving experts of the base out"
            hint = "merge in a stage, and write `base: '@STAGE'` here"
            self.problems.add(what, experts[other].key, hint)

    def _check_beside(self) -> None:
        """Refuse what would change weights that are only left out or kept."""
        hint = "merge in a stage, and write `base: '@STAGE'` in the recipe that prunes"
        for key in ("steps", "rules", "slices", "vocab", "head"):
            other = self.shaper.root.get(key)
            if other is not None and other.value is not None:
                what = f"`moe.prune` and `{key}` do not go together"
                self.problems.add(what, other.key, hint)
        for key, value in self.moe.entries().items():
            if key not in _BESIDE and value.value is not None:
                what = f"`moe.prune` and `moe.{key}` do not go together"
                self.problems.add(what, value.key, "assemble in a recipe of its own")
