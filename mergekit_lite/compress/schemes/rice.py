"""`rice`: signs or values of few entries, whose places are Golomb-Rice codes of the gaps."""

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
from mergekit_lite.errors import DataError
from mergekit_lite.kernels.rice import BLOCK, SLACK, rice_decode, rice_encode

MOST_BITS = 16
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


def encoded(
    delta: Floats, threshold: int, kept: int, ties: int, *, scale: float, signs: bool
) -> Encoded:
    """Return the entries whose magnitude reaches a threshold.

    Args:
        delta: all entries.
        threshold: bits of the least magnitude that is kept.
        kept: how many entries are kept.
        ties: how many of them equal the threshold.
        scale: what decoded signs or values are multiplied by.
        signs: keep the signs alone; else the values divided by `scale`, in fp16.
    """
    bits = bits_for(kept / delta.size) if kept else 0
    blocks = -(-delta.size // BLOCK)
    room = (kept * (bits + 2) + (delta.size >> bits)) // 8 + 11 * blocks + SLACK
    out, index = np.empty(room, np.uint8), np.zeros((blocks, 2), np.uint32)
    values = _NO_VALUES if signs else np.empty(kept, np.float32)
    places, ends = np.empty(BLOCK + 1, np.uint32), np.zeros(2, np.int64)
    left = np.array([ties], np.int64)
    rice_encode(delta, threshold, left, bits, signs, out, index, values, places, ends)
    if ends[0] < 0 or ends[1] != kept:
        raise DataError(f"{ends[1]:,} entries were kept, {kept:,} are wanted")
    parts: dict[str, NDArray[Any]] = {"codes": out[: ends[0]], "index": index.reshape(-1)}
    if not signs:
        parts["values"] = (values / np.float32(scale)).astype(np.float16)
    return Encoded("rice", parts, {"bits": bits, "scale": scale})


def _index_bytes(packed: Packed) -> int:
    return 4 * packed.parts["index"].nbytes if "index" in packed.parts else 0


@scheme("rice", kernels=[rice_decode], held=_index_bytes)
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
        self._bits, self._scale = int(packed.number("bits")), packed.number("scale")
        if not 0 <= self._bits <= MOST_BITS:
            raise DataError(f"`bits` is {self._bits}", packed.name)

    def fill(self, first: int, out: Floats) -> None:
        if not out.size:
            return
        block, end = first // BLOCK, -(-(first + out.size) // BLOCK)
        (kept, begin), (until, stop) = (self._before[n].tolist() for n in (block, end))
        codes = np.empty(-(-(stop - begin + SLACK) // 8) * 8, np.uint8)
        codes[stop - begin :] = 0
        self._fetch(self._codes, begin, codes[: stop - begin])
        wrong = np.zeros(1, np.int64)
        if self._values is not None and until == kept:
            out[:] = 0
            return
        values = self._values_of(kept, until)
        rice_decode(
            codes, self._before, block, end - block, self._bits, self._scale, values, kept,
            first, out, wrong,
        )  # fmt: skip
        if wrong[0]:
            raise DataError("its codes lead beyond their block", self._name, "fetch it again")

    def _values_of(self, kept: int, until: int) -> Floats:
        if self._values is None:
            return _NO_VALUES
        width = DTYPE_BYTES[self._values.dtype]
        raw = np.empty((until - kept) * width, np.uint8)
        self._fetch(self._values, kept * width, raw)
        return raw.view(np.float16).astype(np.float32)
