"""Reads `output.quantize`: a scheme's name, or a mapping with more."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mergekit_lite.recipe.marks import Node, kind_of
from mergekit_lite.recipe.places import keys_of
from mergekit_lite.recipe.schema import Quantize

if TYPE_CHECKING:
    from mergekit_lite.recipe.shape import Shaper


def read_quantize(shaper: Shaper, node: Node) -> dict[str, Any] | None:
    """Return plain data for `Quantize`; None where nothing is to be quantised."""
    if node.value is None:
        return None
    if shaper.outer is not None:
        what = "a stage is not quantised: what uses it would see its errors"
        shaper.problems.add(what, node.mark, "write `quantize` under the recipe's own `output`")
        return None
    if isinstance(node.value, str):
        return {"scheme": node.value.upper()}
    if not isinstance(node.value, dict):
        what = f"`output.quantize` must be a scheme's name or a mapping, not {kind_of(node.value)}"
        shaper.problems.add(what, node.mark, "write `quantize: FP8_DYNAMIC`")
        return None
    known = shaper.known(node, keys_of(Quantize), "output.quantize")
    data = {name: value.plain() for name, value in known.items()}
    if isinstance(data.get("scheme"), str):
        data["scheme"] = data["scheme"].upper()
    if "ignore" in known:
        _check_patterns(shaper, known["ignore"])
    return data


def _check_patterns(shaper: Shaper, node: Node) -> None:
    for each in node.items() or [node]:
        if isinstance(each.value, str) and each.value.startswith("re:"):
            try:
                re.compile(each.value[3:])
            except re.error as error:
                what = f"`{each.value}` is no regular expression: {error}"
                shaper.problems.add(what, each.mark, "write a name with `*`, or repair the pattern")
