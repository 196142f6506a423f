"""Modules of a mergekit recipe: parts of a model that are merged each in its own way."""

from __future__ import annotations

from collections.abc import Sequence

from mergekit_lite.recipe.compat.groups import Settled
from mergekit_lite.recipe.compat.methods import Method
from mergekit_lite.recipe.compat.nodes import mapping, scalar
from mergekit_lite.recipe.compat.reader import Part
from mergekit_lite.recipe.compat.steps import rules_of, steps_of
from mergekit_lite.recipe.marks import Node

_PATTERNS = {
    "vision_tower": ("*vis[iu]*",),
    "multi_modal_projector": ("*projector*", "*merger*"),
    "encoder": ("*encoder.*",),
    "decoder": ("*decoder.*",),
}
"""mergekit's names of modules -> their tensors, those of a part after those of the whole."""

_MAIN = ("", "default", "text_decoder")
"""Modules that hold whatever is in no other."""


def patterns(module: str) -> tuple[str, ...]:
    """Return the patterns of a module's tensors; a name that is not known begins theirs."""
    return _PATTERNS.get(module, (f"{module}.*",))


def main_part(parts: Sequence[Part]) -> Part | None:
    """Return the part whose chain is that of the recipe; None where the base is kept."""
    return next((part for part in parts if part.module in _MAIN), None)


def ordered(parts: Sequence[Part]) -> list[Part]:
    """Return the other parts in the order in which their rules must stand."""
    known = list(_PATTERNS)
    side = [part for part in parts if part.module not in _MAIN]
    return sorted(side, key=lambda part: known.index(part.module) if part.module in known else 99)


def module_rules(method: Method, part: Part, settled: Settled) -> list[Node]:
    """Return the rules for the tensors of one module."""
    group = part.groups[0]
    rules = []
    for pattern in patterns(part.module):
        steps = steps_of(method, group, settled, weighs=True)
        rules.append(mapping({"match": scalar(pattern, part.mark), "steps": steps}, part.mark))
        prefix = pattern.removesuffix("*")
        rules += rules_of(settled, group.mark, prefix=prefix)
    return rules
