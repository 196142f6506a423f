"""The `routers` of a recipe: what becomes of the routers of routed models that are merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, kind_of, show
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import Routers

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

_EXAMPLE = "write `routers: {method: harc, data: {NAME: FILE}}`"


def read_routers(shaper: Shaper, node: Node) -> Any:
    """Return plain data for `Recipe.routers`."""
    problems = shaper.problems
    if not isinstance(node.value, dict):
        if node.value not in ("base", "merge"):
            what = f"`routers: {show(node.value)}` is neither `base` nor `merge`"
            problems.add(what, node.mark, _EXAMPLE)
            return "base"
        return node.plain()
    entries = shaper.known(node, keys_of(Routers), "routers")
    data = {key: value.plain() for key, value in entries.items() if value.value is not None}
    listed = entries.get("data")
    if listed is None or not isinstance(listed.value, dict) or not listed.value:
        kind = "nothing" if listed is None else kind_of(listed.value)
        what = f"`routers.data` must name a file of texts for each expert, not {kind}"
        problems.add(what, node.mark, _EXAMPLE)
        return "base"
    for name, file in listed.entries().items():
        if name not in shaper.experts:
            what = f"`routers.data.{name}` is no expert of this recipe"
            hint = nearest(name, shaper.experts) or f"known here: {', '.join(shaper.experts)}"
            problems.add(what, file.key, hint)
    for name, expert in shaper.experts.items():
        if name not in listed.entries():
            what = (
                f"expert `{name}` has no texts under `routers.data`, so its router would not count"
            )
            problems.add(what, expert.key, f"write `routers: {{data: {{{name}: FILE}}}}`")
    for key in ("moe", "slices"):
        found = shaper.root.get(key)
        if found is not None and found.value is not None:
            what = f"`routers` are not fitted together with `{key}`"
            problems.add(what, found.key, "do one of them in a recipe of its own")
    if shaper.outer is not None:
        problems.add(
            "the routers of a stage cannot be fitted: it is never there as a whole",
            node.mark,
            "write its result first, by a recipe of its own",
        )
    return data
