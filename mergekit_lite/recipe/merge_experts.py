"""The `merge` of a recipe's `moe`: experts of a routed base that become one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, kind_of, show
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.prune import check_alone, check_beside
from mergekit_lite.recipe.schema import MergeExperts, MergeMethod

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

_MAKE = "make them with `mergekit-lite calibrate BASE --data FILE --collect rates,merging -o STATS`"
_OF_ONE_METHOD = {"groups": "listed", "largest": "ream"}
_EXAMPLE = "write `moe: {merge: {keep: 0.5, method: ream, stats: FOLDER}}`"


def read_merge(shaper: Shaper, moe: Node, node: Node) -> dict[str, Any]:
    """Return plain data for `MergeExperts`."""
    problems = shaper.problems
    if not isinstance(node.value, dict):
        what = f"`moe.merge` must be a mapping, not {kind_of(node.value)}"
        problems.add(what, node.mark, _EXAMPLE)
        return {"keep": 1}
    check_beside(shaper, moe, "merge")
    check_alone(shaper, "merge")
    entries = shaper.known(node, keys_of(MergeExperts), "moe.merge")
    entries = {key: value for key, value in entries.items() if value.value is not None}
    data = {key: value.plain() for key, value in entries.items()}
    method = data.setdefault("method", "ream")
    known = get_args(MergeMethod)
    if method not in known:
        what = f"`moe.merge.method: {show(method)}` is no way to choose groups"
        hint = nearest(method, known) or f"known here: {', '.join(known)}"
        problems.add(what, entries["method"].mark, hint)
        return {**data, "method": known[0]}
    for key, owner in _OF_ONE_METHOD.items():
        if key in data and method != owner:
            what = f"`{key}` says nothing to the method `{method}`"
            problems.add(what, entries[key].key, f"remove it, or write `method: {owner}`")
    if ("keep" in data) == (method == "listed"):
        what = "`keep` and `groups` both say how many stay" if "keep" in data else "no `keep`"
        problems.add(what, node.mark, "`listed` has `groups`, all other methods `keep`")
    if method == "listed" and "groups" not in data:
        problems.add("`listed` needs `groups`", node.mark, "write `groups: [[0, 3], [5, 1]]`")
    if "stats" not in data and (wants := _what_wants_statistics(data)):
        problems.add(f"`{wants}` needs `stats`", node.mark, _MAKE)
    return data


def _what_wants_statistics(data: dict[str, Any]) -> str:
    """Return what of a recipe's words cannot be done without a measurement."""
    if data["method"] != "listed":
        return str(data["method"])
    free = {"weights": ("equal",), "align": (), "router": ("centroid", "map")}
    for key, words in free.items():
        if key in data and data[key] not in words and not (key == "align" and _by_weights(data)):
            return f"{key}: {data[key]}"
    return "refit_down" if "refit_down" in data else ""


def _by_weights(data: dict[str, Any]) -> bool:
    return data["align"] in ("weights", "none")
