"""The memory that tiles of a row's inputs are brought into, and what stored entries are in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.errors import DataError

if TYPE_CHECKING:
    from mergekit_lite.engine.supplies import Slot, Supply

SLOT_ALIGNMENT = 4096
CACHE_LINE = 64


def as_float32(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return stored entries as fp32 (exactly, but for F64, which is rounded)."""
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kind = {"F16": np.float16, "F32": np.float32, "F64": np.float64}.get(dtype)
    if kind is None:
        raise DataError(f"dtype {dtype} does not enter arithmetic")
    return raw.view(kind).astype(np.float32)


def float32_of(supply: Supply, first: int, count: int) -> NDArray[np.float32]:
    """Return entries [first, first + count) of an input as fp32."""
    raw = np.empty(count * DTYPE_BYTES[supply.dtype], np.uint8)
    supply.fill(first, count, raw)
    return as_float32(raw, supply.dtype)


def fill_as(dtype: str, supply: Supply, first: int, count: int, out: NDArray[np.uint8]) -> None:
    """Put entries [first, first + count) of an input into `out`: in its own dtype, or in F32."""
    if supply.dtype == dtype:
        supply.fill(first, count, out)
    else:
        out.view(np.float32)[:] = float32_of(supply, first, count)


class TilePool:
    """One worker's memory for raw tiles, reused for every row.

    A tile of an input lies at an address congruent to its file offset modulo a cache line:
    reads into other positions were measured five times slower (docs/benchmarks.md).
    """

    def __init__(self) -> None:
        self.raw: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._memory: NDArray[np.uint8] = self.raw

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return new memory; other devices want another kind of it."""
        return np.empty(nbytes, np.uint8)

    def positions(self, slots: list[Slot], tile: int) -> NDArray[np.int64]:
        """Return where each slot's page-aligned space begins, after making room for all."""
        at, end = [], 0
        for slot in slots:
            at.append(end)
            width = DTYPE_BYTES[slot.dtype] if slot.dtype else 0
            end += -(-(tile * width + CACHE_LINE) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
        if self.raw.nbytes < end:
            self._memory = self.allocate(end + SLOT_ALIGNMENT)
            skip = -self._memory.ctypes.data % SLOT_ALIGNMENT
            self.raw = self._memory[skip : skip + end]
        return np.array(at, np.int64)
