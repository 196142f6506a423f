"""Answers of statistics as plain data, for files and other machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergekit_lite.ops._place import Cut, Sums
from mergekit_lite.ops._statistics import Answer


def to_data(answer: Answer) -> Any:
    """Return an answer as JSON-able data."""
    if answer is None:
        return None
    if isinstance(answer, Sums):
        return {"sums": _sums(answer)}
    if isinstance(answer, Mapping):
        return {"layers": {str(layer): _sums(sums) for layer, sums in answer.items()}}
    if answer and isinstance(answer[0], tuple):
        return {"each": [_cuts(cuts) for cuts in answer]}
    return {"cuts": _cuts(answer)}


def from_data(data: Any) -> Answer:
    """Rebuild an answer from `to_data`.

    Raises:
        ValueError: the data are none.
    """
    try:
        if data is None:
            return None
        ((kind, value),) = data.items()
        if kind == "cuts":
            return _cuts_from(value)
        if kind == "each":
            return tuple(map(_cuts_from, value))
        if kind == "sums":
            return _sums_from(value)
        if kind == "layers":
            return {int(layer): _sums_from(sums) for layer, sums in value.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no answer of a statistic: {error}") from None
    raise ValueError(f"no answer of a statistic: `{kind}`")


def _cuts(cuts: tuple[Cut, ...]) -> list[list[float]]:
    return [[cut.threshold, cut.until] for cut in cuts]


def _cuts_from(data: Any) -> tuple[Cut, ...]:
    return tuple(Cut(float(threshold), int(until)) for threshold, until in data)


def _sums(sums: Sums) -> dict[str, Any]:
    return {"absolute": sums.absolute, "gram": sums.gram, "plain": sums.plain}


def _sums_from(data: Any) -> Sums:
    gram = tuple(tuple(map(float, row)) for row in data["gram"])
    return Sums(tuple(map(float, data["absolute"])), gram, tuple(map(float, data["plain"])))
