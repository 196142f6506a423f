"""Which stored rows make up the rows of an input whose vocabulary is not the output's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


ZERO, MEAN, SHARED = -1, -2, -3
"""In place of a part, for rows that are no stored row: nothing, the mean of the input's other rows,
the mean of several stored rows."""


def row_map(
    parts: NDArray[np.int64],
    at: NDArray[np.int64],
    stored: Sequence[int],
    shared: Mapping[int, tuple[Place, ...]],
) -> RowMap:
    """Return the map in which row i is stored row `at[i]` of part `parts[i]`.

    Args:
        parts: numbers of parts, or `ZERO`, `MEAN` or `SHARED`.
        at: rows of the parts.
        stored: how many rows each part has stored.
        shared: the places of rows that are `SHARED`.
    """
    import numpy as np

    rows = np.arange(len(parts))
    breaks = np.ones(len(parts), bool)
    breaks[1:] = (parts[1:] != parts[:-1]) | ((parts[1:] >= 0) & (at[1:] != at[:-1] + 1))
    first = rows[breaks]
    count = np.diff(np.append(first, len(parts)))
    kind = parts[first]
    moved, filled = kind >= 0, kind == MEAN
    runs = np.stack([first, count, kind, at[first]])[:, moved].T.tolist()
    means = np.stack([first, count])[:, filled].T.tolist()
    return RowMap(
        rows=len(parts),
        stored=tuple(stored),
        runs=tuple(map(tuple, runs)),
        shared=tuple(sorted(shared.items())),
        filled=tuple(map(tuple, means)),
    )
