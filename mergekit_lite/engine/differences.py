"""The tensors of a base and its fine-tune side by side, in blocks that stay in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.supplies import Slot, Supply, slots_of
from mergekit_lite.engine.tiles import CACHE_LINE
from mergekit_lite.errors import DataError, Problem
from mergekit_lite.kernels.codec import CODES
from mergekit_lite.kernels.survey import difference_tile
from mergekit_lite.plan.types import Job

TILE = 1 << 18
"""Entries that are read at a time."""
SAMPLE = 1 << 14
"""Entries that are read at a time of a sample."""

Floats = NDArray[np.float32]


class Digest(Protocol):
    """A checksum that is being taken."""

    def update(self, data: Any, /) -> None:
        """Take bytes in."""


@dataclass(frozen=True)
class Difference:
    """One float tensor of the base and what stands in its place in the fine-tune."""

    job: Job
    base: Slot
    tuned: Slot

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.job.shape)

    def tiles(
        self, digest: Digest | None = None, into: Floats | None = None, step: int = TILE
    ) -> Iterator[Floats]:
        """Yield the difference, tile by tile, in a buffer that is used again.

        Args:
            digest: updated with the base's bytes.
            into: in place of that buffer, memory for all of the difference.
            step: entries from one tile to the next; with more than `TILE` a sample, of small tiles.

        Raises:
            DataError: an entry is not finite.
        """
        out = np.empty(min(TILE, max(self.size, 1)), np.float32)
        work = np.empty(4096, np.float32)
        bad = np.zeros(2, np.int64)
        sides = [_Side(slot) for slot in (self.base, self.tuned)]
        subtract = difference_tile.on(sides[0].code, sides[1].code, bad, work)
        most = TILE if step == TILE else SAMPLE
        for first in range(0, self.size, step):
            count = min(most, self.size - first)
            base, tuned = (side.read(first, count) for side in sides)
            if digest is not None:
                digest.update(base.data)
            part = out[:count] if into is None else into[first : first + count]
            subtract(base, tuned, part)
            yield part
        if bad.any():
            hint = "the input is broken: fetch or train it again"
            raise DataError(
                [
                    Problem(
                        f"{count:,} of {self.size:,} entries are NaN or infinite",
                        f"{slot.read.source}: {self.job.name}",
                        hint,
                    )
                    for slot, count in zip((self.base, self.tuned), bad.tolist(), strict=True)
                    if count
                ]
            )

    def whole(self, memory: Floats, digest: Digest | None = None) -> Floats:
        """Return all of the difference, in memory that has room for it.

        Args:
            memory: as many entries as it has, or more.
            digest: updated with the base's bytes.
        """
        out = memory[: self.size]
        for _ in self.tiles(digest, out):
            pass
        return out


class _Side:
    """Reads one input into memory of its own."""

    def __init__(self, slot: Slot) -> None:
        self._supply = supply(slot)
        self.code, self._width = CODES.get(slot.dtype, -1), DTYPE_BYTES[slot.dtype]
        self._memory = np.empty(TILE * self._width + CACHE_LINE, np.uint8)

    def read(self, first: int, count: int) -> NDArray[np.uint8]:
        """Return the stored entries from `first` on."""
        begin = (self._supply.offset(first) - self._memory.ctypes.data) % CACHE_LINE
        raw = self._memory[begin : begin + count * self._width]
        self._supply.fill(first, count, raw)
        return raw


def supply(slot: Slot) -> Supply:
    """Return what supplies an input that must be there."""
    if slot.supply is None:
        raise DataError("the tensor is not in both models", slot.read.source)
    return slot.supply


def difference_of(job: Job, readers: Readers) -> Difference:
    """Return a row of base and fine-tune as their difference."""
    base, tuned = slots_of(job, readers)
    return Difference(job, base, tuned)


def digest_of(slot: Slot, size: int) -> str:
    """Return the first 32 hexadecimal digits of the sha256 of an input's entries."""
    digest, side = hashlib.sha256(), _Side(slot)
    for first in range(0, size, TILE):
        digest.update(side.read(first, min(TILE, size - first)).data)
    return digest.hexdigest()[:32]
