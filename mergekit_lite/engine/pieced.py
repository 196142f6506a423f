"""A tensor that is put together of runs of entries of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.inputs import as_float32
from mergekit_lite.plan.types import Piece, Read

if TYPE_CHECKING:
    from mergekit_lite.engine.supplies import Supply


def pieced_dtype(dtypes: list[str]) -> str:
    """Return the dtype in which pieces of these dtypes are handed on."""
    return dtypes[0] if len(set(dtypes)) == 1 else "F32"


@dataclass
class Pieced:
    """Pieces one after the other, in the order of the tensor's entries.

    Args:
        pieces: with what supplies the tensor that each is a part of.
    """

    pieces: list[tuple[Piece, Supply]]
    is_delta = False

    def __post_init__(self) -> None:
        self.ends = list(accumulate(piece.count for piece, _ in self.pieces))

    @property
    def dtype(self) -> str:
        return pieced_dtype([supply.dtype for _, supply in self.pieces])

    def offset(self, first: int) -> int:
        if len(self.pieces) > 1:
            return 0
        piece, supply = self.pieces[0]
        return supply.offset(piece.first + first)

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        width = DTYPE_BYTES[self.dtype]
        for (piece, supply), end in zip(self.pieces, self.ends, strict=True):
            begin = end - piece.count
            low, high = max(first, begin), min(first + count, end)
            if low < high:
                part = out[(low - first) * width : (high - first) * width]
                self._part(supply, piece.first + low - begin, high - low, part)

    def _part(self, supply: Supply, first: int, count: int, out: NDArray[np.uint8]) -> None:
        if supply.dtype == self.dtype:
            supply.fill(first, count, out)
            return
        raw = np.empty(count * DTYPE_BYTES[supply.dtype], np.uint8)
        supply.fill(first, count, raw)
        out.view(np.float32)[:] = as_float32(raw, supply.dtype)


def pieced(read: Read, stored: Callable[[str], Supply]) -> Pieced:
    """Return what supplies an input that is made of pieces.

    Args:
        read: the input.
        stored: what supplies a stored tensor of its source, by name.
    """
    known: dict[str, Supply] = {}
    for piece in read.pieces:
        if piece.name not in known:
            known[piece.name] = stored(piece.name)
    return Pieced([(piece, known[piece.name]) for piece in read.pieces])
