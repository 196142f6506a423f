"""Parameters that a search chooses: `{search: [low, high]}` and `{choice: [...]}` in a recipe."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_lite.errors import nearest
from mergekit_lite.recipe.marks import Mark, Node, Path, Problems, kind_of, show
from mergekit_lite.recipe.text import number

KEYS = {"search": ("search", "log", "step", "default"), "choice": ("choice", "default")}
"""What a range, and what a list of choices, may say."""
_RANGE = "write `{search: [0.1, 1.0]}`, with `log: true` or `step: 0.1` where they fit"
_CHOICE = "write `{choice: [mass, count]}`"


@dataclass(frozen=True)
class Searched:
    """One parameter that a search chooses, at one place of a recipe or at several.

    Attributes:
        name: dotted path of its first place.
        paths: of all its places; a variable or an anchor may put it at several.
        where: the first place.
        low: least value of a range.
        high: largest value of a range.
        log: search the logarithm.
        step: distance of the values of a range from one another; None takes any.
        choices: values to choose from, in place of a range.
        default: what it is where nobody searches; None says that there is nothing.
    """

    name: str
    paths: tuple[Path, ...]
    where: Mark
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    default: Any = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The choices as texts, all different."""
        return tuple(show(value) for value in self.choices)

    @property
    def whole(self) -> bool:
        """Whether all values of a range are whole numbers."""
        return self.step is not None and float(self.step).is_integer() and self.low == int(self.low)

    @property
    def start(self) -> Any:
        """The value to begin with: the default, else the middle of the range, or the first."""
        if self.default is not None:
            return self.default
        if self.choices:
            return self.choices[0]
        if self.log:
            return math.sqrt(self.low * self.high)
        middle = (self.low + self.high) / 2
        return middle if self.step is None else self.at_step(middle)

    def at_step(self, value: float) -> float:
        """Return the nearest value that the step allows."""
        step = self.step or 1.0
        return self.low + round((value - self.low) / step) * step

    def admits(self, value: Any) -> bool:
        """Return whether the search could choose a value."""
        if self.choices:
            return show(value) in self.labels
        return not isinstance(value, bool | str) and self.low <= value <= self.high


def searched(root: Node, problems: Problems) -> tuple[Searched, ...]:
    """Return the parameters of a recipe's tree that are to be searched, in reading order.

    What is wrong with one is noted, and it is left out.
    """
    experts = _expert_names(root)
    found: dict[Mark, tuple[Node, list[Path]]] = {}
    for path, node in root.walk():
        key = _key_of(node, path, experts)
        if key is None:
            continue
        if not _is_parameter(path):
            what = f"`{_dotted(path)}` is no parameter, so it cannot be searched"
            hint = "weights, parameters of ops and the `set` of rules can, outside of stages"
            problems.add(what, node.mark, hint)
            continue
        # A variable or an anchor has one place, wherever it is used: it is one parameter.
        found.setdefault(node.value[key].key, (node, []))[1].append(path)
    read = (_read(node, paths, problems) for node, paths in found.values())
    return tuple(one for one in read if one is not None)


def with_values(root: Node, parameters: Collection[Searched], values: Mapping[str, Any]) -> Node:
    """Return a tree in which every searched parameter has its value.

    Args:
        root: of the recipe.
        parameters: that are searched.
        values: by name, one for each.
    """
    for parameter in parameters:
        for path in parameter.paths:
            root = _put(root, path, values[parameter.name])
    return root


def settled(root: Node, problems: Problems) -> Node:
    """Return a tree whose searched parameters have their defaults; those without one are noted."""
    if not _any(root):
        return root
    parameters = searched(root, problems)
    for parameter in parameters:
        if parameter.default is None:
            what = f"`{parameter.name}` is to be searched, and has no value"
            hint = "find one with `mergekit-lite search`, or add `default: ...` beside the range"
            problems.add(what, parameter.where, hint)
    return with_values(root, parameters, {p.name: p.start for p in parameters})


def _any(node: Node) -> bool:
    value = node.value
    if isinstance(value, dict):
        return "search" in value or "choice" in value or any(map(_any, value.values()))
    return isinstance(value, list) and any(map(_any, value))


def _expert_names(root: Node) -> set[str]:
    experts = root.get("experts")
    return set(experts.entries()) if experts is not None else set()


def _key_of(node: Node, path: Path, experts: Collection[str]) -> str | None:
    """Return `search` or `choice` where a mapping is one of these, and no map by expert."""
    entries = node.entries()
    key = next((key for key in KEYS if key in entries), None)
    if key is None or not path:
        return None
    listed = isinstance(entries[key].value, list)
    if _is_parameter(path):
        return key if listed or key not in experts else None
    return key if listed and set(entries) <= set(KEYS[key]) else None


def _is_parameter(path: Path) -> bool:
    """Return whether a weight, a parameter of an op or a rule's `set` stands at a path."""
    if path[:1] == ("experts",) and path[2:3] == ("weight",):
        return True
    if path[:1] == ("rules",) and path[2:3] == ("set",):
        return len(path) > 3
    inside = path[2:] if path[:1] in (("experts",), ("rules",), ("slices",)) else path
    return inside[:1] == ("steps",) and len(inside) > 3


def _read(node: Node, paths: list[Path], problems: Problems) -> Searched | None:
    name, entries, before = _dotted(paths[0]), node.entries(), len(problems)
    key = next(key for key in KEYS if key in entries)
    for other in entries:
        if other not in KEYS[key]:
            what = f"a `{key}` has no key `{other}`"
            hint = nearest(other, KEYS[key]) or f"it may have {', '.join(KEYS[key])}"
            problems.add(what, entries[other].key, hint)
    fields = _choices(entries[key], problems) if key == "choice" else _range(entries, problems)
    if len(problems) != before:
        return None
    found = Searched(name, tuple(paths), node.mark, **fields)
    given = entries.get("default")
    if given is None:
        return found
    value = given.plain()
    if not found.choices:
        value = number(value)
    if value is None or not found.admits(value):
        what = f"the `default` {show(given.plain())} of `{name}` is nothing that is searched"
        problems.add(what, given.mark, "take a value of the range, or one of the choices")
        return None
    return Searched(name, tuple(paths), node.mark, **fields, default=value)


def _range(entries: Mapping[str, Node], problems: Problems) -> dict[str, Any]:
    node = entries["search"]
    ends = [number(item.value) for item in node.items()]
    if len(ends) != 2 or any(end is None or not math.isfinite(end) for end in ends):
        problems.add("`search` takes a range of two numbers", node.mark, _RANGE)
        return {}
    low, high = (float(end) for end in ends if end is not None)
    if low >= high:
        what = f"the range [{low:g}, {high:g}] is empty"
        hint = f"write [{high:g}, {low:g}]" if low > high else "give two different ends"
        problems.add(what, node.mark, hint)
    log, step = entries.get("log"), entries.get("step")
    if log is not None and not isinstance(log.value, bool):
        problems.add(f"`log` is true or false, not {kind_of(log.value)}", log.mark)
    if log is not None and log.value is True and low <= 0:
        problems.add("a range with `log` lies above 0", node.mark, f"begin above {low:g}")
    if log is not None and log.value is True and step is not None:
        problems.add("a range has `log` or `step`, not both", step.key, "remove one of them")
    width = number(step.value) if step is not None else None
    if step is not None and (width is None or not 0 < width <= max(high - low, 0)):
        problems.add("`step` is a number above 0, no larger than the range", step.mark, _RANGE)
    is_log = log is not None and log.value is True
    return {"low": low, "high": high, "log": is_log, "step": width}


def _choices(node: Node, problems: Problems) -> dict[str, Any]:
    values = [item.plain() for item in node.items()]
    if len(values) < 2:
        given = "one" if values else "nothing"
        problems.add(f"`choice` gives {given} to choose from", node.mark, _CHOICE)
    for item, value in zip(node.items(), values, strict=True):
        if isinstance(value, dict) or value is None:
            problems.add(f"a choice is a value or a list, not {kind_of(value)}", item.mark, _CHOICE)
    labels = [show(value) for value in values]
    for item, label in zip(node.items(), labels, strict=True):
        if labels.count(label) > 1:
            problems.add(f"`{label}` is among the choices twice", item.mark, "keep one of them")
    return {"choices": tuple(values)}


def _put(node: Node, path: Path, value: Any) -> Node:
    if not path:
        return _as_nodes(node, value)
    head, rest = path[0], path[1:]
    inner = node.value[head]
    if isinstance(head, int):
        listed = list(node.value)
        listed[head] = _put(inner, rest, value)
        return node.with_value(listed)
    return node.with_value({**node.value, head: _put(inner, rest, value)})


def _as_nodes(node: Node, value: Any) -> Node:
    if isinstance(value, list | tuple):
        return node.with_value([Node(item, node.mark, node.mark) for item in value])
    return node.with_value(value)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
