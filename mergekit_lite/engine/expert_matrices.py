"""The experts of a routed base as matrices in memory, one expert at a time."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.supplies import supply_of
from mergekit_lite.engine.tiles import float32_of
from mergekit_lite.errors import DataError
from mergekit_lite.moe.merge.matrices import Held, Matrices
from mergekit_lite.plan.types import Job, Read

if TYPE_CHECKING:
    from mergekit_lite.plan.row_maps import RowMap
    from mergekit_lite.sources import Model

    Floats = NDArray[np.float32]

BASE = "base"


class StoredExperts:
    """Reads tensors of a routed base in fp32, quantised ones as the numbers they stand for.

    Args:
        models: inputs of a plan.
        row_maps: of the plan.
    """

    def __init__(self, models: Mapping[str, Model], row_maps: Mapping[str, RowMap]) -> None:
        self._readers = Readers(models, row_maps)

    def close(self) -> None:
        """Close the weight files."""
        self._readers.close()

    def tensor(self, name: str) -> Floats:
        """Return a whole tensor."""
        shape = self._readers.info(BASE, name).shape
        return self._part(name, 0, prod(shape)).reshape(shape)

    def expert(self, matrices: Matrices, expert: int) -> dict[str, Floats]:
        """Return `gate` and `up` (neurons, d) and `down` (d, neurons) of an expert."""
        found: dict[str, Floats] = {}
        for held in matrices.held:
            if held.leaf != "weight" or not held.part:
                continue
            size = held.rows * held.columns
            name = held.name if matrices.stacked else held.name.format(e=expert)
            first = expert * size if matrices.stacked else 0
            stored = self._part(name, first, size).reshape(held.rows, held.columns)
            found |= _as_in_memory(held, stored)
        return found

    def _part(self, name: str, first: int, count: int) -> Floats:
        read = Read(BASE, name)
        job = Job(name, "F32", self._readers.info(BASE, name).shape, 0, 0, "merge", (read,))
        supply = supply_of(read, job, self._readers)
        if supply is None:
            raise DataError(f"the base has no `{name}`")
        return float32_of(supply, first, count)


def _as_in_memory(held: Held, stored: Floats) -> dict[str, Floats]:
    if held.part == "down":
        return {"down": stored if held.axis == "columns" else stored.T}
    rows = stored if held.axis == "rows" else stored.T
    if held.kind == "halves":
        return {"gate": rows[: len(rows) // 2], "up": rows[len(rows) // 2 :]}
    if held.kind == "turns":
        return {"gate": rows[::2], "up": rows[1::2]}
    return {held.part: rows}
