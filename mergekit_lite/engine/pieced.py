"""A tensor that is put together of runs of entries of others, in their order or in another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.tiles import fill_as
from mergekit_lite.plan.types import Piece, Read, Turn

if TYPE_CHECKING:
    from mergekit_lite.engine.supplies import Supply

_SQUARE: Final = 256
"""Rows and columns that are copied in one go."""


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
                fill_as(self.dtype, supply, piece.first + low - begin, high - low, part)


@dataclass
class Turned:
    """Entries whose blocks have their dimensions exchanged; the block in use stays in memory.

    Args:
        stored: the entries as they are stored.
        turn: the blocks, and the order of their dimensions.
    """

    stored: Pieced
    turn: Turn
    is_delta = False
    _number: int = -1
    _block: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        size, width = prod(self.turn.shape), DTYPE_BYTES[self.dtype]
        done = 0
        while done < count:
            number, inside = divmod(self.turn.first + first + done, size)
            n = min(size - inside, count - done)
            self._load(number, size, width)
            part = self._block[inside * width : (inside + n) * width]
            out[done * width : (done + n) * width] = part
            done += n

    def _load(self, number: int, size: int, width: int) -> None:
        if number == self._number:
            return
        self._number = -1
        raw = np.empty(size * width, np.uint8)
        self.stored.fill(number * size, size, raw)
        entries = raw.view(f"u{width}").reshape(self.turn.shape).transpose(self.turn.axes)
        self._block = in_order(entries).reshape(-1).view(np.uint8)
        self._number = number


def in_order(entries: NDArray[Any]) -> NDArray[Any]:
    """Return a copy whose entries lie in the order of its dimensions, made square by square.

    Whole rows at a time, each of whose entries lies in another cache line, take four times as long.
    """
    copy = np.empty(entries.shape, entries.dtype)
    small = sorted(range(entries.ndim), key=lambda axis: entries.shape[axis])[:-2]
    for place in np.ndindex(*[entries.shape[axis] for axis in small]):
        at: list[int | slice] = [slice(None)] * entries.ndim
        for axis, number in zip(small, place, strict=True):
            at[axis] = number
        into, of = copy[tuple(at)], entries[tuple(at)]
        for row in range(0, of.shape[0], _SQUARE):
            for column in range(0, of.shape[1], _SQUARE):
                square = slice(row, row + _SQUARE), slice(column, column + _SQUARE)
                into[square] = of[square]
    return copy


def pieced(read: Read, stored: Callable[[str], Supply]) -> Pieced | Turned:
    """Return what supplies an input that is made of pieces.

    Args:
        read: the input.
        stored: what supplies a stored tensor of its source, by name.
    """
    known: dict[str, Supply] = {}
    for piece in read.pieces:
        if piece.name not in known:
            known[piece.name] = stored(piece.name)
    whole = Pieced([(piece, known[piece.name]) for piece in read.pieces])
    return whole if read.turn is None else Turned(whole, read.turn)
