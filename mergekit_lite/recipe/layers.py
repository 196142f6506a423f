"""Layer ranges such as `0-4,7,30-`."""

from __future__ import annotations

import re
from typing import Any

Ranges = tuple[tuple[int, int | None], ...]
"""Inclusive (first, last) pairs; a last of None reaches to the end of the model. No pairs at all
stand for what is in no layer."""

OUTSIDE = "outside"

_PART = re.compile(r"(\d+)(?:\s*(-)\s*(\d+)?)?")
FORMS = "write `3`, `0-4`, `30-` (to the end), `0-4,7,30-`, a list of these, or `outside`"


def parse_layers(value: Any) -> Ranges:
    """Return the inclusive ranges that a recipe's `layers` names.

    Args:
        value: an index, text such as `0-4,7,30-`, or a list of these, counted from 0; or `outside`
            for what is in no layer.

    Raises:
        ValueError: anything else; the message says what is wrong with which part.
    """
    if isinstance(value, bool):
        raise ValueError("layers are numbers or ranges, not true/false")
    if isinstance(value, int):
        return (_part(str(value)),)
    if value == OUTSIDE:
        return ()
    if isinstance(value, str):
        return tuple(_part(part) for part in value.split(","))
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("an empty list of layers matches nothing")
        if OUTSIDE in value:
            raise ValueError("`outside` stands alone, not in a list")
        return tuple(pair for part in value for pair in parse_layers(part))
    raise ValueError(f"layers are numbers or ranges, not `{value}`")


def _part(text: str) -> tuple[int, int | None]:
    text = text.strip()
    match = _PART.fullmatch(text)
    if not match:
        negative = text.startswith("-")
        reason = "layers are counted from 0 upwards" if negative else "not a layer or a range"
        raise ValueError(f"`{text}`: {reason}")
    first = int(match[1])
    last = int(match[3]) if match[3] else (None if match[2] else first)
    if last is not None and last < first:
        raise ValueError(f"`{text}`: the range ends before it begins")
    return first, last


def format_layers(ranges: Ranges) -> str:
    """Return ranges as the text that `parse_layers` reads back to the same ranges."""
    if not ranges:
        return OUTSIDE
    return ",".join(
        str(first) if first == last else f"{first}-{'' if last is None else last}"
        for first, last in ranges
    )


def covers(ranges: Ranges, layer: int | None) -> bool:
    """Return whether a layer lies in one of the ranges; None is outside the layers."""
    if layer is None:
        return not ranges
    return any(first <= layer and (last is None or layer <= last) for first, last in ranges)
