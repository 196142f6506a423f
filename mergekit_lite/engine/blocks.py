"""An input made of windows onto matrices: stacked, padded with zeros, or cut into slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.tiles import fill_as
from mergekit_lite.plan.types import Block, Read

if TYPE_CHECKING:
    from mergekit_lite.engine.supplies import Supply


def blocks_dtype(dtypes: Sequence[str], blocks: Iterable[Block]) -> str:
    """Return the dtype in which blocks of these dtypes are handed on; one may be empty."""
    known = {dtype for dtype in dtypes if dtype}
    scaled = any(block.scale != 1.0 for block in blocks)
    return known.pop() if len(known) == 1 and not scaled else "F32"


@dataclass
class Blocks:
    """Windows one after the other, in the order of the input's entries.

    Args:
        blocks: with what supplies the matrix of each, None for zeros.
    """

    blocks: list[tuple[Block, Supply | None]]
    is_delta = False

    def __post_init__(self) -> None:
        self.ends = list(accumulate(prod(block.shape) for block, _ in self.blocks))
        dtypes = [supply.dtype if supply else "" for _, supply in self.blocks]
        self.dtype = blocks_dtype(dtypes, [block for block, _ in self.blocks])

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        width = DTYPE_BYTES[self.dtype]
        for (block, supply), end in zip(self.blocks, self.ends, strict=True):
            begin = end - prod(block.shape)
            low, high = max(first, begin), min(first + count, end)
            if low < high:
                part = out[(low - first) * width : (high - first) * width]
                self._window(block, supply, low - begin, high - low, part)
                if block.scale != 1.0:
                    part.view(np.float32)[:] *= np.float32(block.scale)

    def _window(
        self, block: Block, supply: Supply | None, first: int, count: int, out: NDArray[np.uint8]
    ) -> None:
        """Put entries [first, first + count) of a window into `out`."""
        width, columns = DTYPE_BYTES[self.dtype], block.shape[1]
        if block.first[1] == 0 and columns == block.stored[1]:
            there = max(min(block.stored[0] - block.first[0], block.shape[0]), 0) * columns
            inside = max(min(there - first, count), 0) if supply is not None else 0
            out[inside * width :] = 0
            if supply is not None and inside:
                at = block.first[0] * columns + first
                fill_as(self.dtype, supply, at, inside, out[: inside * width])
            return
        done = 0
        while done < count:
            row, column = divmod(first + done, columns)
            some = min(columns - column, count - done)
            part = out[done * width : (done + some) * width]
            self._row(block, supply, (row, column), part)
            done += some

    def _row(
        self, block: Block, supply: Supply | None, at: tuple[int, int], out: NDArray[np.uint8]
    ) -> None:
        """Fill a run of one row of a window from this row and column on."""
        width = DTYPE_BYTES[self.dtype]
        rows, columns = block.stored
        row, column = block.first[0] + at[0], block.first[1] + at[1]
        inside = max(min(columns - column, out.nbytes // width), 0)
        if supply is None or row >= rows:
            inside = 0
        out[inside * width :] = 0
        if supply is not None and inside:
            fill_as(self.dtype, supply, row * columns + column, inside, out[: inside * width])


class Beside:
    """Windows side by side, each with all rows.

    Args:
        blocks: with what supplies the matrix of each, None for zeros.
    """

    is_delta = False

    def __init__(self, blocks: list[tuple[Block, Supply | None]]) -> None:
        dtypes = [supply.dtype if supply else "" for _, supply in blocks]
        self.dtype = blocks_dtype(dtypes, [block for block, _ in blocks])
        self.windows = [(block, Blocks([(block, supply)])) for block, supply in blocks]
        self.columns = sum(block.shape[1] for block, _ in blocks)

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        row, skip = divmod(first, self.columns)
        rows = -(-(skip + count) // self.columns)
        width, at = DTYPE_BYTES[self.dtype], 0
        whole = np.empty((rows, self.columns, width), np.uint8)
        for block, window in self.windows:
            columns = block.shape[1]
            part = np.empty(rows * columns * width, np.uint8)
            fill_as(self.dtype, window, row * columns, rows * columns, part)
            whole[:, at : at + columns] = part.reshape(rows, columns, width)
            at += columns
        out[:] = whole.reshape(-1)[skip * width : (skip + count) * width]


def blocks_of(read: Read, supply_of: Callable[[Block], Supply | None]) -> Blocks | Beside:
    """Return what supplies an input that is made of blocks.

    Args:
        read: the input.
        supply_of: what supplies the matrix of a block.
    """
    supplied = [(block, supply_of(block)) for block in read.blocks]
    return Beside(supplied) if read.beside else Blocks(supplied)
