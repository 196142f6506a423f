"""What a store will say about a tensor of one task, while the store is being made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.patch import SAME, WHOLE, PatchRow
from mergekit_lite.compress import Encoded, scheme_named
from mergekit_lite.compress._types import in_memory
from mergekit_lite.engine.differences import TILE
from mergekit_lite.errors import DataError

_SUMS = 5
_OF_DELTA, _OF_DECODED, _SQUARES, _PRODUCTS, _DECODED_SQUARES = range(_SUMS)


@dataclass(frozen=True)
class Row:
    """A tensor of one task.

    Attributes:
        dtype, shape, base: as in `PatchRow`.
        scheme: how it is stored.
        crc32: of what is stored of it.
        numbers: what the scheme needs beside.
        tiles: sums of each tile: magnitudes of the difference and of what is decoded, squares,
            products of both, squares of what is decoded.
    """

    dtype: str
    shape: tuple[int, ...]
    base: str
    scheme: str = SAME
    crc32: str = "00000000"
    numbers: Mapping[str, float] = field(default_factory=dict)
    tiles: list[NDArray[np.float64]] = field(default_factory=list)

    def told(self, scheme: str, crc32: str, numbers: Mapping[str, float] | None = None) -> Row:
        """Return the row of a tensor that is stored."""
        return Row(self.dtype, self.shape, self.base, scheme, crc32, numbers or {})

    def measure(
        self, values: NDArray[np.float32], encoded: Encoded | None = None, name: str = ""
    ) -> None:
        """Take down the sums of a difference and of what it is decoded to, itself by default."""
        decoder = None
        if encoded is not None:
            packed, fetch = in_memory(encoded, name, self.shape)
            decoder = scheme_named(encoded.scheme).decoder(packed, fetch)
        for first in range(0, values.size, TILE):
            tile = values[first : first + TILE]
            decoded = tile
            if decoder is not None:
                decoded = np.empty_like(tile)
                decoder.fill(first, decoded)
            one, other = tile.astype(np.float64), decoded.astype(np.float64)
            pairs = (np.abs(one), np.abs(other), one * one, one * other, other * other)
            self.tiles.append(np.array([pair.sum() for pair in pairs]))

    def sum(self, which: int) -> float:
        return math.fsum(float(tile[which]) for tile in self.tiles)

    def finished(self, scale: float) -> PatchRow:
        """Return the row with the norm of what is missed if what is decoded is scaled."""
        squares = self.sum(_SQUARES)
        missed = squares - scale * (2 * self.sum(_PRODUCTS) - scale * self.sum(_DECODED_SQUARES))
        numbers = dict(self.numbers)
        if "scale" in numbers:
            numbers["scale"] *= scale
        return PatchRow(
            self.dtype, self.shape, self.base, self.scheme, self.crc32,
            math.sqrt(squares), math.sqrt(max(missed, 0.0)), numbers,
        )  # fmt: skip


def finished(task: str, rows: Mapping[str, Row], *, rescaled: bool) -> dict[str, PatchRow]:
    """Return all rows of a task.

    Args:
        task: its name, for messages.
        rows: tensor -> row.
        rescaled: what is decoded is scaled to the sum of magnitudes that the differences have.

    Raises:
        DataError: nothing differs, or nothing is left to be scaled.
    """
    if all(row.scheme == SAME for row in rows.values()):
        what = f"the task `{task}` is its base: no tensor differs"
        raise DataError(what, hint="check which models were given")
    scale = 1.0
    if rescaled:
        packed = [row for row in rows.values() if row.scheme not in (SAME, WHOLE)]
        wanted = math.fsum(row.sum(_OF_DELTA) for row in packed)
        left = math.fsum(row.sum(_OF_DECODED) for row in packed)
        if packed and not (left > 0 and math.isfinite(wanted / left)):
            what = f"nothing is left of the task `{task}`: all others oppose it in every entry"
            raise DataError(what, hint="pack it with `t_switch`, where tasks share nothing")
        scale = wanted / left if packed else 1.0
    return {name: row.finished(scale) for name, row in rows.items()}
