"""Ranks of what a combine derives from all inputs of a row, entry by entry, such as a variance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.program import Program
from mergekit_lite.engine.ranks import find_cuts
from mergekit_lite.engine.row import Row
from mergekit_lite.engine.supplies import Slot
from mergekit_lite.engine.tiles import TilePool
from mergekit_lite.kernels.combine import WEIGHTED_SUM
from mergekit_lite.plan.types import Read

Values = NDArray[np.float32]
Derive = Callable[[int, int, Values], None]
"""Writes the values of the entries from a flat index on, so many, of a tile that is loaded."""


@dataclass
class Derived:
    """Stands for a stored tensor: computes entries from a row's inputs as they are read."""

    row: Row
    derive: Derive
    dtype = "F32"
    is_delta = True

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        """Put the values of entries [first, first + count) into `out`."""
        values = out.view(np.float32)
        for start in range(0, count, self.row.tile):
            n = min(self.row.tile, count - start)
            self.row.load(first + start, n)
            self.derive(first + start, n, values[start : start + n])


def derived_cuts(
    row: Row, derive: Derive, ranks: Sequence[int], stop: threading.Event
) -> list[tuple[int, int]]:
    """Return the k largest of the derived values for each rank: bits of the threshold, and until.

    The values must not be negative; at most three ranks are found at once.
    """
    nothing = Read(source="", name="", zero=True)
    read = Read(source="", name=row.job.name)
    slots = [Slot(nothing, None), Slot(read, Derived(row, derive))]
    job = replace(row.job, reads=(read,), base=None, steps=())
    values = Row(job, row.readers, TilePool(), tile=row.tile, weight_space=False, slots=slots)
    program = Program(
        kinds=np.zeros((1, 1), np.int64),
        floats=np.ones((1, 1), np.float32),
        ints=np.zeros((1, 1, 6), np.int64),
        combine=WEIGHTED_SUM,
        weights=np.ones(1, np.float32),
        divisor=np.float32(0.0),
        options=np.zeros(4, np.int64),
        posts=np.zeros(0, np.float32),
        weight_space=False,
        wanted={(0, 0): tuple(ranks)},
    )
    find_cuts(values, program, {0: 0}, stop)
    found = program.ints[0, 0, : 2 * len(ranks)].tolist()
    return list(zip(found[::2], found[1::2], strict=True))
