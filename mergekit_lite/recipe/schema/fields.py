"""Kinds of values that fields of a recipe have: sizes, layers, whole numbers, patterns."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from mergekit_lite.recipe.layers import FORMS, Ranges, format_layers, parse_layers
from mergekit_lite.recipe.text import number

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": scale**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, scale in (("B", 1000), ("iB", 1024))
}
SIZE_FORMS = "write 5GB (5 x 10^9 bytes), 5GiB (5 x 2^30 bytes), 500MB or a plain number of bytes"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_size(value: Any) -> int:
    """Return the bytes that a size such as `5GB`, `5GiB`, `500MB` or `123456` stands for.

    Raises:
        ValueError: no positive number, or a unit that is not one of bytes.
    """
    match = _SIZE.fullmatch(str(value).strip())
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    known = match is not None and match[2].lower() in units and not isinstance(value, bool)
    size = Decimal(match[1]) * units[match[2].lower()] if match and known else Decimal("0.5")
    if size < 1 or size != int(size):
        raise ValueError(f"`{value}` is not a size in bytes; {SIZE_FORMS}")
    return int(size)


def _size(value: Any) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        what, _, hint = str(error).partition("; ")
        raise PydanticCustomError("size", "{what}", {"what": what, "hint": hint}) from None


def _layers(value: Any) -> Ranges:
    try:
        return parse_layers(value)
    except ValueError as error:
        raise PydanticCustomError("layers", "{what}", {"what": str(error), "hint": FORMS}) from None


def whole(value: Any) -> Any:
    """Return a number that a text or a float stands for, if it is a whole one."""
    found = number(value)
    if found is None or not math.isfinite(found) or found != int(found):
        raise PydanticCustomError("int_type", "must be a whole number")
    return int(found)


def whole_or_none(value: Any) -> Any:
    """Return a whole number, or None as it is."""
    return None if value is None else whole(value)


Weight = float | tuple[float, ...]
"""A number, or a gradient over depth: numbers interpolated from the first layer to the last."""


class Part(BaseModel):
    """A mapping of the recipe."""

    # The texts under the fields reach the JSON schema when that is generated: reading them from
    # the source here would double the time this module takes to import.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


Scope = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]

_LAYERS_PATTERN = r"^\s*\d+(\s*-\s*\d*)?(\s*,\s*\d+(\s*-\s*\d*)?)*\s*$|^outside$"
LayerRanges = Annotated[
    Ranges,
    BeforeValidator(_layers),
    PlainSerializer(format_layers),
    WithJsonSchema(
        {
            "oneOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": _LAYERS_PATTERN},
                {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1},
            ]
        }
    ),
]

Bytes = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema(
        {
            "oneOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([KMGTkmgt]?[iI]?[bB])?\s*$"},
            ]
        }
    ),
]
