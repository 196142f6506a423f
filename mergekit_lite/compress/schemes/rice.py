"""`rice`: few entries, whose places are Golomb-Rice codes of the gaps.

Of each there is a sign, a value in fp16, or the code of a level, which stands for `code - zero`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES
from mergekit_lite.checkpoint.coded.grid import Fetch, fetched
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress._spec import scheme
from mergekit_lite.compress._types import Encoded, Floats, size_of
from mergekit_lite.compress.packing import pack, packed_bytes, unpack
from mergekit_lite.errors import DataError
from mergekit_lite.kernels.rice import (
    BLOCK,
    MARKED,
    MOST_BITS,
    SLACK,
    put_tile,
    rice_decode,
    rice_encode,
    words_of_block,
)

_PHI = (1 + math.sqrt(5)) / 2
_NO_VALUES = np.empty(0, np.float32)


def bits_for(share: float) -> int:
    """Return how many of a gap's lowest bits are best written as they are.

    Args:
        share: of the entries that are kept, above 0.
    """
    if share >= 1:
        return 0
    best = math.floor(math.log2(math.log(_PHI - 1) / math.log1p(-share)))
    return min(max(1 + best, 0), MOST_BITS)


def scale_for(values: Floats) -> float:
    """Return the power of two by which values are divided before they are stored in fp16.

    fp16 then spans 2 ** -24 to 2 ** 15 of it: a mantissa of 11 bits far below the largest.
    """
    scale = 2.0 ** (math.frexp(float(np.abs(values).max()))[1] - 15)
    return min(max(scale, 2.0**-126), 2.0**126)


def encoded(
    delta: Floats,
    threshold: int,
    kept: int,
    ties: int,
    *,
    scale: float,
    signs: bool,
    squares: float | None = None,
) -> Encoded:
    """Return the entries whose magnitude reaches a threshold.

    Args:
        delta: all entries.
        threshold: bits of the least magnitude that is kept.
        kept: how many entries are kept.
        ties: how many of them equal the threshold.
        scale: what decoded signs or values are multiplied by.
        signs: keep the signs alone; else the values divided by `scale`, in fp16.
        squares: sum of the squares of all entries, where it is known; for signs, what is missed
            of it is then known as well.
    """
    parts, bits, values, magnitudes = _placed(delta, threshold, kept, ties, signs=signs)
    if not signs:
        parts["values"] = (values / np.float32(scale)).astype(np.float16)
    missed = None
    if signs and squares is not None:
        size = float(np.float32(scale))
        missed = max(squares + size * (size * kept - 2 * magnitudes), 0.0)
    return Encoded("rice", parts, {"bits": bits, "scale": scale}, missed)


def levelled(levels: Floats, zero: int, level_bits: int, *, scale: float) -> Encoded:
    """Return the entries that are not zero, each as the code of its level.

    Args:
        levels: whole numbers from `-zero` to `2 ** level_bits - 1 - zero`; 0 for what is dropped.
        zero: the code of level 0.
        level_bits: of a code.
        scale: what levels are multiplied by.
    """
    kept = int(np.count_nonzero(levels))
    parts, bits, values, _ = _placed(levels, 1, kept, 0, signs=False)
    parts["levels"] = pack((values + np.float32(zero)).astype(np.uint8), level_bits)
    numbers = {"bits": bits, "scale": scale, "level_bits": level_bits, "zero": zero}
    return Encoded("rice", parts, numbers)


def _placed(
    delta: Floats, threshold: int, kept: int, ties: int, *, signs: bool
) -> tuple[dict[str, NDArray[Any]], int, Floats, float]:
    """Return the coded places of what is kept, and the lowest bits of a gap.

    Then the kept entries, unless only their signs are wanted, and the sum of their magnitudes.
    """
    bits = bits_for(kept / delta.size) if kept else 0
    blocks = -(-delta.size // BLOCK)
    room = (kept * (bits + 2) + (delta.size >> bits)) // 8 + 11 * blocks + SLACK
    out, index = np.empty(room, np.uint8), np.zeros((blocks, 2), np.uint32)
    values = _NO_VALUES if signs else np.empty(kept, np.float32)
    places, marks = np.empty(BLOCK, np.uint32), np.empty(MARKED, np.uint8)
    words, ends = np.empty(words_of_block(bits), np.uint64), np.zeros(2, np.int64)
    left, total = np.array([ties], np.int64), np.zeros(1, np.float64)
    limit = float(np.uint32(threshold).view(np.float32))
    rice_encode(
        delta, limit, left, bits, signs, out, index, values, places, marks, words, total, ends
    )  # fmt: skip
    if ends[0] < 0 or ends[1] != kept:
        raise DataError(f"{ends[1]:,} entries were kept, {kept:,} are wanted")
    parts: dict[str, NDArray[Any]] = {"codes": out[: ends[0]], "index": index.reshape(-1)}
    return parts, bits, values, float(total[0])


def index_bytes(packed: Packed) -> int:
    """Return the bytes that decoding holds: where each block begins."""
    return 4 * packed.parts["index"].nbytes if "index" in packed.parts else 0


@scheme("rice", kernels=[rice_decode, put_tile], held=index_bytes)
class Rice:
    """Decodes the blocks that a range of entries lies in."""

    def __init__(self, packed: Packed, fetch: Fetch) -> None:
        self._name, self._fetch, self._size = packed.name, fetch, size_of(packed)
        blocks = -(-self._size // BLOCK)
        index = fetched(fetch, packed.part("index", "U32", 2 * blocks)).view(np.uint32)
        self._before = np.zeros((blocks + 1, 2), np.int64)
        np.cumsum(index.reshape(blocks, 2), axis=0, dtype=np.int64, out=self._before[1:])
        kept, nbytes = (int(n) for n in self._before[-1])
        self._codes = packed.part("codes", "U8", nbytes)
        self._values = packed.part("values", "F16", kept) if "values" in packed.parts else None
        self._levels = _Levels(packed, kept) if "level_bits" in packed.numbers else None
        self._bits, self._scale = int(packed.number("bits")), packed.number("scale")
        if not 0 <= self._bits <= MOST_BITS:
            raise DataError(f"`bits` is {self._bits}", packed.name)

    def fill(self, first: int, out: Floats) -> None:
        if out.size:
            put_tile(*self.entries(first, out.size), out)

    def entries(self, first: int, count: int) -> tuple[NDArray[np.uint32], Floats, int]:
        """Return which of `count` entries from `first` on are not zero, what they are, how many."""
        block, end = first // BLOCK, -(-(first + count) // BLOCK)
        (kept, begin), (until, stop) = (self._before[n].tolist() for n in (block, end))
        places, found = (
            np.empty(until - kept + 1, np.uint32),
            np.empty(until - kept + 1, np.float32),
        )
        if until == kept:
            return places, found, 0
        codes = np.empty(stop - begin + SLACK, np.uint8)
        codes[stop - begin :] = 0
        self._fetch(self._codes, begin, codes[: stop - begin])
        ends = np.zeros(2, np.int64)
        rice_decode(
            codes, self._before, block, end - block, self._bits, self._scale,
            self._values_of(kept, until), kept, first, count, places, found, ends,
        )  # fmt: skip
        if ends[1]:
            raise DataError("its codes lead beyond their block", self._name, "fetch it again")
        return places, found, int(ends[0])

    def _values_of(self, kept: int, until: int) -> Floats:
        if self._levels is not None:
            return self._levels.read(self._fetch, kept, until)
        if self._values is None:
            return _NO_VALUES
        width = DTYPE_BYTES[self._values.dtype]
        raw = np.empty((until - kept) * width, np.uint8)
        self._fetch(self._values, kept * width, raw)
        return raw.view(np.float16).astype(np.float32)


class _Levels:
    """Codes of the levels of kept entries."""

    def __init__(self, packed: Packed, kept: int) -> None:
        self._bits, self._zero = int(packed.number("level_bits")), packed.number("zero")
        if not 1 <= self._bits <= 8:
            raise DataError(f"`level_bits` is {self._bits}", packed.name)
        self._info = packed.part("levels", "U8", packed_bytes(kept, self._bits))

    def read(self, fetch: Fetch, kept: int, until: int) -> Floats:
        """Return the levels of the kept entries from number `kept` to `until`."""
        begin = kept * self._bits // 8
        raw = np.empty(packed_bytes(until, self._bits) - begin, np.uint8)
        fetch(self._info, begin, raw)
        codes = unpack(raw, self._bits, until - kept, kept * self._bits - 8 * begin)
        return codes.astype(np.float32) - np.float32(self._zero)
