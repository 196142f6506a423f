"""An input whose rows or columns are those of a stored matrix in another order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.errors import DataError
from mergekit_lite.plan.row_memory import TILE_ENTRIES
from mergekit_lite.plan.types import Order

if TYPE_CHECKING:
    from mergekit_lite.engine.supplies import Supply


def ordered(supply: Supply, order: Order, numbers: NDArray[np.float32]) -> Supply:
    """Return a matrix in another order.

    Args:
        supply: of the matrix as it is stored.
        order: which way it is ordered.
        numbers: of the stored rows (columns), in order; one that is not stored stands for zeros.

    Raises:
        DataError: a number is no whole one, or negative.
    """
    chosen = numbers.astype(np.int64)
    if chosen.size and (chosen.min() < 0 or (chosen != numbers).any()):
        raise DataError("an order of neurons holds what is no number of one", where=order.name)
    make = OrderedRows if order.axis == "rows" else OrderedColumns
    return make(supply, order.stored, chosen)


@dataclass
class OrderedRows:
    """Rows of a matrix in another order; each is read by itself, where it is not the next."""

    supply: Supply
    stored: tuple[int, int]
    chosen: NDArray[np.int64]
    is_delta = False

    def __post_init__(self) -> None:
        self.dtype = self.supply.dtype

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        width, (rows, columns) = DTYPE_BYTES[self.dtype], self.stored
        done = 0
        while done < count:
            row, column = divmod(first + done, columns)
            some = min(columns - column, count - done)
            part = out[done * width : (done + some) * width]
            at = int(self.chosen[row])
            if at < rows:
                self.supply.fill(at * columns + column, some, part)
            else:
                part[:] = 0
            done += some


@dataclass
class OrderedColumns:
    """Columns of a matrix in another order; some whole rows of it are kept in memory."""

    supply: Supply
    stored: tuple[int, int]
    chosen: NDArray[np.int64]
    is_delta = False
    _first: int = -1
    _rows: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0, 0), np.uint8))

    def __post_init__(self) -> None:
        self.dtype = self.supply.dtype

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        width, columns = DTYPE_BYTES[self.dtype], len(self.chosen)
        done = 0
        while done < count:
            row, column = divmod(first + done, columns)
            some = min(columns - column, count - done)
            self._bring(row)
            part = out[done * width : (done + some) * width].reshape(some, width)
            chosen = self.chosen[column : column + some]
            part[:] = self._rows[row - self._first][np.minimum(chosen, self.stored[1])]
            done += some

    def _bring(self, row: int) -> None:
        """Bring whole rows into memory from this one on, a column of zeros behind them."""
        if self._first <= row < self._first + len(self._rows):
            return
        rows, columns = self.stored
        count = min(max(TILE_ENTRIES // columns, 1), rows - row)
        width = DTYPE_BYTES[self.dtype]
        raw = np.empty(count * columns * width, np.uint8)
        self.supply.fill(row * columns, count * columns, raw)
        self._rows = np.zeros((count, columns + 1, width), np.uint8)
        self._rows[:, :columns] = raw.reshape(count, columns, width)
        self._first = row
