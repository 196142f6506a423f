"""Which stored rows make up the rows of an input whose vocabulary is not the output's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Place = tuple[int, int]
"""A stored row: number of the part that has it, and the row's number there."""


@dataclass(frozen=True, slots=True)
class RowMap:
    """Where each row of an input comes from.

    A row that none of the lists speaks of is zero.

    Attributes:
        rows: number of rows that the input has for the merge.
        stored: how many rows each part has stored; the first part is the input itself.
        runs: (first row, count, part, first stored row), in order, none overlapping.
        shared: (row, places) of rows that are the mean of several stored ones, in order.
        filled: (first row, count) of rows that are the mean of all that runs and shared rows give.
    """

    rows: int
    stored: tuple[int, ...]
    runs: tuple[tuple[int, int, int, int], ...]
    shared: tuple[tuple[int, tuple[Place, ...]], ...] = ()
    filled: tuple[tuple[int, int], ...] = ()

    @property
    def averages(self) -> bool:
        """Whether rows are computed, not only moved."""
        return bool(self.shared or self.filled)

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> RowMap:
        """Rebuild a map from its JSON form."""
        return cls(
            rows=raw["rows"],
            stored=tuple(raw["stored"]),
            runs=tuple((a, b, c, d) for a, b, c, d in raw["runs"]),
            shared=tuple((r, tuple((p, s) for p, s in places)) for r, places in raw["shared"]),
            filled=tuple((a, b) for a, b in raw["filled"]),
        )


FILLED = ((-1, -1),)
"""Stands for a row that is the mean of the input's others."""


def row_map(rows: Sequence[tuple[Place, ...]], stored: Sequence[int]) -> RowMap:
    """Return the map in which row i is the mean of the stored rows `rows[i]`.

    Args:
        rows: for each row its places: none for zeros, or `FILLED`.
        stored: how many rows each part has stored.
    """
    runs: list[tuple[int, int, int, int]] = []
    shared: list[tuple[int, tuple[Place, ...]]] = []
    filled: list[tuple[int, int]] = []
    first = count = start = 0
    part = -1
    for row, places in enumerate(rows):
        if len(places) == 1 and places is not FILLED:
            now, at = places[0]
            if now == part and at == start + count and row == first + count:
                count += 1
                continue
            if count:
                runs.append((first, count, part, start))
            first, count, part, start = row, 1, now, at
        elif places is FILLED:
            if filled and sum(filled[-1]) == row:
                filled[-1] = (filled[-1][0], filled[-1][1] + 1)
            else:
                filled.append((row, 1))
        elif places:
            shared.append((row, places))
    if count:
        runs.append((first, count, part, start))
    return RowMap(len(rows), tuple(stored), tuple(runs), tuple(shared), tuple(filled))
