"""What an op says of its parameters, and its checked examples."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `above`/`below` exclude their end, `at_least`/`at_most` include it."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def admits(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = f"{self.at_least:g} <= " if self.at_least is not None else ""
        low = f"{self.above:g} < " if self.above is not None else low
        high = f" <= {self.at_most:g}" if self.at_most is not None else ""
        high = f" < {self.below:g}" if self.below is not None else high
        return f"{low}x{high}"


@dataclass(frozen=True)
class Doc:
    """What a parameter means, in one line."""

    text: str


@dataclass(frozen=True)
class Vector:
    """One hand-checkable case: inputs, parameters and the result they must give.

    Transforms and posts read `deltas[0]`; `base` defaults to zeros. `expect` is the op's own
    result (a delta for delta ops, a weight for weight ops). `source` says where it comes from.
    """

    deltas: list[Any]
    expect: list[Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    weights: list[float] | None = None
    layer: int | None = None
    layers: int = 1
    tolerance: float = 1e-5
    source: str = ""
    calibration: list[Any] | None = None  # one statistic for each delta


@dataclass(frozen=True)
class Parameter:
    """One recipe parameter of an op: its type, default, bounds and meaning."""

    name: str
    type: Any  # float, int, bool, str, a Literal, or a union of those with None; tuple[float, ...]
    default: Any  # inspect.Parameter.empty when the recipe must give it
    range: Range | None
    doc: str
    per_expert: bool  # a map by expert name is meaningful
    expert_name: bool  # the value names an expert or `base`

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def choices(self) -> tuple[Any, ...] | None:
        return get_args(self.type) if get_origin(self.type) is Literal else None

    @property
    def listed(self) -> bool:
        """Whether the value is a list of numbers, which is then no gradient over depth."""
        return get_origin(self.type) is tuple

    @property
    def numeric(self) -> bool:
        """Whether the value may be a gradient over depth."""
        if self.listed:
            return False
        kinds = get_args(self.type) or (self.type,)
        return float in kinds or int in kinds

    def problem(self, value: Any) -> str:
        """Return what is wrong with one plain value, or an empty string."""
        if self.listed:
            return self._listed_problem(value)
        kinds = (self.type,) if self.choices else get_args(self.type) or (self.type,)
        if self.choices:
            allowed = ", ".join(str(choice) for choice in self.choices)
            return "" if value in self.choices else f"is {value!r}; it must be one of {allowed}"
        if not any(_is_a(value, kind) for kind in kinds):
            names = " or ".join(map(_kind_name, kinds))
            return f"is {value!r}; it must be of type {names}"
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and self.range is not None and not self.range.admits(value):
            return f"is {value!r}; it must be in {self.range}"
        return ""

    def _listed_problem(self, value: Any) -> str:
        if not isinstance(value, list | tuple) or not all(_is_a(item, float) for item in value):
            return f"is {value!r}; it must be a list of numbers"
        outside = [x for x in value if self.range is not None and not self.range.admits(x)]
        return f"holds {outside[0]!r}; each must be in {self.range}" if outside else ""


def _kind_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    return "nothing" if kind is type(None) else str(kind.__name__)


def _is_a(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is ExpertName:
        return isinstance(value, str)
    return isinstance(value, kind)


class ExpertName(str):
    """Type of a parameter that names an expert of the recipe, or `base`."""
