"""The `prune` and `dense` of a recipe's `moe`: what becomes of the experts of a routed base."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any, get_args

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, kind_of, show
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import Prune, PruneMethod, ToDense

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
        check_beside(self.shaper, self.moe, "prune")
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
        check_alone(self.shaper, "prune", {name})


def check_alone(shaper: Shaper, key: str, used: Set[Any] = frozenset()) -> None:
    """Refuse experts of the recipe that nothing is taken of.

    Args:
        shaper: of the recipe.
        key: of `moe`, such as `prune`.
        used: names of those that have a part.
    """
    for other in shaper.experts.keys() - used:
        what = f"expert `{other}` has no part in what `moe.{key}` does with the base"
        hint = "merge in a stage, and write `base: '@STAGE'` here"
        shaper.problems.add(what, shaper.experts[other].key, hint)


def read_dense(shaper: Shaper, moe: Node, node: Node) -> dict[str, Any]:
    """Return plain data for `ToDense`."""
    problems = shaper.problems
    if isinstance(node.value, str):
        data: dict[str, Any] = {"method": node.value}
    elif isinstance(node.value, dict):
        entries = shaper.known(node, keys_of(ToDense), "moe.dense")
        data = {key: value.plain() for key, value in entries.items() if value.value is not None}
    else:
        what = f"`moe.dense` must be a mapping, not {kind_of(node.value)}"
        problems.add(what, node.mark, "write `moe: {dense: mean}`")
        return {}
    check_beside(shaper, moe, "dense")
    method = data.get("method", "mean")
    if method in ("frequency", "top1") and "stats" not in data:
        problems.add(f"`{method}` needs `stats`", node.mark, _GIVE["stats"])
    return data


def check_beside(shaper: Shaper, moe: Node, key: str) -> None:
    """Refuse what would change weights that `moe` only takes, leaves out or averages."""
    hint = "merge in a stage, and write `base: '@STAGE'` in the recipe that does this"
    for other in ("steps", "rules", "slices", "vocab", "head"):
        found = shaper.root.get(other)
        if found is not None and found.value is not None:
            what = f"`moe.{key}` and `{other}` do not go together"
            shaper.problems.add(what, found.key, hint)
    for other, value in moe.entries().items():
        beside = other == "experts_per_token" and key in ("prune", "merge")
        if other != key and not beside and value.value is not None:
            what = f"`moe.{key}` and `moe.{other}` do not go together"
            shaper.problems.add(what, value.key, "assemble in a recipe of its own")
