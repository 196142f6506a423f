"""`parameters:` of a mergekit recipe: which value holds for which tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Node, Problems, kind_of
from mergekit_lite.recipe.text import number

_FORM = "write `- {filter: self_attn, value: 0.5}` entries, the last one without a filter"


@dataclass(frozen=True)
class Value:
    """One value and the tensors it is for.

    Attributes:
        filter: text that the tensor's name must hold; "" is every tensor.
        node: the value: a scalar, or a gradient over the layers.
    """

    filter: str
    node: Node


def scopes_value(name: str, scopes: Sequence[Node | None], problems: Problems) -> list[Value]:
    """Return what a parameter may be, best first: the first whose filter fits a tensor holds.

    The list ends with the first value without a filter; without one, a default must do.

    Args:
        name: the parameter.
        scopes: `parameters:` mappings, the strongest first.
        problems: where to note settings that cannot be read.
    """
    found: list[Value] = []
    for scope in scopes:
        node = scope.get(name) if scope is not None else None
        if node is None or node.value is None:
            continue
        for value in _values(name, node, problems):
            found.append(value)
            if not value.filter:
                return found
    return found


def _values(name: str, node: Node, problems: Problems) -> list[Value]:
    if isinstance(node.value, dict):
        return [value] if (value := _conditional(name, node, problems)) else []
    conditional = [isinstance(item.value, dict) for item in node.items()]
    if any(conditional):
        if not all(conditional):
            what = f"`{name}` mixes values with `{{filter, value}}` entries"
            problems.add(what, node.mark, _FORM)
            return []
        read = [_conditional(name, item, problems) for item in node.items()]
        return [value for value in read if value is not None]
    return [Value("", unquoted(node))]


def _conditional(name: str, node: Node, problems: Problems) -> Value | None:
    for key, entry in node.entries().items():
        if key not in ("filter", "value"):
            hint = nearest(key, ("filter", "value")) or _FORM
            problems.add(f"unknown key `{key}` in `{name}`", entry.key, hint)
    value, given = node.get("value"), node.get("filter")
    if value is None or value.value is None:
        problems.add(f"an entry of `{name}` has no `value`", node.mark, _FORM)
        return None
    if isinstance(value.value, dict):
        what = f"the value of `{name}` must be a number or a list, not {kind_of(value.value)}"
        problems.add(what, value.mark, _FORM)
        return None
    text = given.value if given is not None else None
    if text is not None and not isinstance(text, str):
        problems.add(f"a filter is part of a tensor's name, not {kind_of(text)}", node.mark, _FORM)
        return None
    return Value("" if text in (None, "*") else str(text), unquoted(value))


def unquoted(node: Node) -> Node:
    """Return a value as mergekit reads it, where a number in quotes is a number."""
    if isinstance(node.value, list):
        return node.with_value([unquoted(item) for item in node.value])
    found = number(node.value) if isinstance(node.value, str) else None
    return replace(node, value=node.value if found is None else found, quoted=False)
