"""One value of a recipe against the parameter it is for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from mergekit_lite.errors import nearest
from mergekit_lite.ops._spec import ExpertName, Parameter
from mergekit_lite.recipe.marks import Mark, Node, Problems, kind_of, show
from mergekit_lite.recipe.text import number

DEFAULT = "default"  # the entry of a per-expert map for experts that it does not name
FP32_MAX = (2 - 2**-23) * 2.0**127
WEIGHT = Parameter("weight", float, 1.0, None, "Weight in the combine.", True, False)


def kinds(parameter: Parameter) -> tuple[Any, ...]:
    """Return the plain types and `Literal`s that a parameter's annotation is a union of."""
    if get_origin(parameter.type) is Literal or not get_args(parameter.type):
        return (parameter.type,)
    return get_args(parameter.type)


def choices(parameter: Parameter) -> tuple[Any, ...]:
    """Return the words a parameter may be, over all `Literal`s of its annotation."""
    return tuple(
        word for kind in kinds(parameter) if get_origin(kind) is Literal for word in get_args(kind)
    )


def wanted(parameter: Parameter) -> str:
    """Return what a parameter takes, in the words of a message."""
    if parameter.listed:
        return "a list of numbers"
    parts = [f"`{show(word)}`" for word in choices(parameter)]
    found = kinds(parameter)
    if float in found:
        parts.append("a number")
    elif int in found:
        parts.append("a whole number")
    if bool in found:
        parts.append("true or false")
    if ExpertName in found:
        parts.append("the name of an expert or `base`")
    if str in found:
        parts.append("text")
    if type(None) in found:
        parts.append("null")
    return " or ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


@dataclass(frozen=True)
class Reader:
    """Reads parameter values and notes what is wrong with them.

    Attributes:
        experts: names of the recipe's experts.
        problems: where to note what is wrong.
    """

    experts: Sequence[str]
    problems: Problems

    def read(
        self,
        parameter: Parameter,
        node: Node,
        owner: str,
        *,
        maps: bool,
        also: tuple[str, ...] = (),
    ) -> Any:
        """Return the value with number-like text turned into numbers.

        Args:
            parameter: what the value is for.
            node: the value.
            owner: the op (or other thing) whose parameter it is, for messages.
            maps: whether a map by expert name is meaningful here.
            also: names besides the experts' that such a map may hold.
        """
        if not isinstance(node.value, dict):
            return self._value(parameter, node, owner)
        if not maps:
            self.problems.add(
                f"`{parameter.name}` of `{owner}` takes one value, not one for each expert",
                node.mark,
                f"give {wanted(parameter)}",
            )
            return None
        known = (*self.experts, *also)
        result = {}
        for name, value in node.value.items():
            if name not in known and name != DEFAULT:
                self._unknown_expert(name, value.key, known)
            result[name] = self._value(parameter, value, owner)
        if not result:
            self.problems.add(f"the map for `{parameter.name}` is empty", node.mark)
        return result

    def _unknown_expert(self, name: str, mark: Mark, known: Sequence[str]) -> None:
        listed = ", ".join(f"`{expert}`" for expert in known) or "none"
        hint = nearest(name, known) or f"experts of this recipe: {listed}"
        self.problems.add(f"there is no expert `{name}`", mark, hint)

    def _value(self, parameter: Parameter, node: Node, owner: str) -> Any:
        if parameter.listed:
            return self._list(parameter, node, owner)
        if not isinstance(node.value, list):
            return self._scalar(parameter, node, owner)
        if not parameter.numeric:
            what = f"`{parameter.name}` of `{owner}` cannot vary over depth"
            self.problems.add(what, node.mark, f"give {wanted(parameter)}")
            return None
        if not node.value:
            what = f"the gradient for `{parameter.name}` is empty"
            self.problems.add(what, node.mark, "give at least one number")
        return [self._scalar(parameter, item, owner, gradient=True) for item in node.value]

    def _list(self, parameter: Parameter, node: Node, owner: str) -> Any:
        if not isinstance(node.value, list):
            what = f"`{parameter.name}` of `{owner}` must be a list of numbers, not"
            self.problems.add(f"{what} {_quoted(node.value)}", node.mark, _allowed(parameter))
            return None
        number = replace(parameter, type=float)
        return [self._scalar(number, item, owner) for item in node.value]

    def _scalar(
        self, parameter: Parameter, node: Node, owner: str, *, gradient: bool = False
    ) -> Any:
        label = f"`{parameter.name}` of `{owner}`"
        found = kinds(parameter)
        value = node.value
        if ExpertName in found and isinstance(value, str):
            if value != "base" and value not in self.experts:
                self._unknown_expert(value, node.mark, (*self.experts, "base"))
            return value
        for accept in (_none, _word, _bool, _number, _text):
            taken, result = accept(parameter, value)
            if accept is _number and taken and node.quoted:
                what = f"{label} must be {wanted(parameter)}, not the text `{show(value)}`"
                self.problems.add(what, node.mark, "remove the quotes")
                return None
            if taken and not (gradient and accept is not _number):
                return self._in_range(parameter, node, label, result)
        what = f"{label} must be {wanted(parameter)}, not {_quoted(value)}"
        near = nearest(str(value), map(str, choices(parameter))) if value is not None else ""
        self.problems.add(what, node.mark, near or _allowed(parameter))
        return None

    def _in_range(self, parameter: Parameter, node: Node, label: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        if not math.isfinite(value):
            what = f"{label} must be a finite number, not {value}"
            self.problems.add(what, node.mark, _allowed(parameter))
        elif isinstance(value, float) and abs(value) > FP32_MAX:
            what = f"{label} is {show(node.value)}, too large for fp32, in which all is computed"
            self.problems.add(what, node.mark, f"the largest number of fp32 is {FP32_MAX:.8g}")
        elif parameter.range and not parameter.range.admits(value):
            what = f"{label} is {show(node.value)}, outside its range"
            self.problems.add(what, node.mark, _allowed(parameter))
        return value


def _allowed(parameter: Parameter) -> str:
    """Return the range of a parameter as a remedy, or what it is for where it has none."""
    if parameter.range:
        return f"allowed is {str(parameter.range).replace('x', parameter.name)}"
    return f"{parameter.name}: {parameter.doc}" if parameter.doc else ""


def _quoted(value: Any) -> str:
    if value is None or isinstance(value, dict | list):
        return kind_of(value)
    return f"`{show(value)}`"


Accept = tuple[bool, Any]
_Acceptor = Callable[[Parameter, Any], Accept]


def _none(parameter: Parameter, value: Any) -> Accept:
    return value is None and type(None) in kinds(parameter), None


def _word(parameter: Parameter, value: Any) -> Accept:
    same = [word for word in choices(parameter) if word == value and type(word) is type(value)]
    return bool(same), value


def _bool(parameter: Parameter, value: Any) -> Accept:
    return isinstance(value, bool) and bool in kinds(parameter), value


def _number(parameter: Parameter, value: Any) -> Accept:
    found = number(value)
    if found is None or (isinstance(value, str) and str in kinds(parameter)):
        return False, None
    if float in kinds(parameter):
        return True, float(found)
    whole = math.isfinite(found) and found == int(found)
    return int in kinds(parameter) and whole, int(found) if whole else None


def _text(parameter: Parameter, value: Any) -> Accept:
    return isinstance(value, str) and str in kinds(parameter), value
