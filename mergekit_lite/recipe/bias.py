"""The `bias` of a recipe's `moe`: experts of a routed base that are switched on or off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_lite.recipe.marks import Node, kind_of
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.prune import check_alone, check_beside
from mergekit_lite.recipe.schema import SwitchExperts

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper

_EXAMPLE = "write `moe: {bias: {off: {3: [1, 5]}}}`: layers, and the numbers of experts in them"


def read_bias(shaper: Shaper, moe: Node, node: Node) -> dict[str, Any]:
    """Return plain data for `SwitchExperts`."""
    if not isinstance(node.value, dict):
        what = f"`moe.bias` must be a mapping, not {kind_of(node.value)}"
        shaper.problems.add(what, node.mark, _EXAMPLE)
        return {}
    check_beside(shaper, moe, "bias")
    check_alone(shaper, "bias")
    entries = shaper.known(node, keys_of(SwitchExperts), "moe.bias")
    return {key: value.plain() for key, value in entries.items() if value.value is not None}
