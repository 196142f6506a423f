"""`masked`: the entries of one vector that a mask of bits picks, times a scale."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.coded.grid import Fetch
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress._spec import scheme
from mergekit_lite.compress._types import Encoded, Floats, size_of
from mergekit_lite.errors import DataError

VECTOR, MASK = "vector", "mask"


def vector_of(values: Floats, dtype: str) -> tuple[NDArray[np.generic], float]:
    """Return a vector as it is stored, and the power of two that its entries are multiplied by.

    Args:
        values: finite, not all zero.
        dtype: in which it is stored, `float16` or `float32`.
    """
    if dtype == "float32":
        return values.copy(), 1.0
    # fp16 then spans 2 ** -24 to 2 ** 15 of it: a mantissa of 11 bits far below the largest.
    unit = 2.0 ** (math.frexp(float(np.abs(values).max()))[1] - 15)
    unit = min(max(unit, 2.0**-126), 2.0**126)
    return (values / np.float32(unit)).astype(np.float16), unit


def encoded(mask: NDArray[np.bool_], unit: float, scale: float = 1.0) -> Encoded:
    """Return what one task keeps of a vector that is stored once for all.

    Args:
        mask: which entries.
        unit: what the stored entries are multiplied by.
        scale: what those products are multiplied by.
    """
    bits = np.packbits(mask, bitorder="little")
    return Encoded("masked", {MASK: bits}, {"unit": unit, "scale": scale})


@scheme("masked")
class Masked:
    """Reads the entries of the vector that a range needs, and the bits that pick them."""

    def __init__(self, packed: Packed, fetch: Fetch) -> None:
        self._size, self._fetch = size_of(packed), fetch
        self._mask = packed.part(MASK, "U8", -(-self._size // 8))
        half = VECTOR in packed.parts and packed.parts[VECTOR].dtype == "F16"
        self._vector = packed.part(VECTOR, "F16" if half else "F32", self._size)
        self._dtype = np.dtype(np.float16 if half else np.float32)
        self._unit = np.float32(packed.number("unit"))
        self._scale = np.float32(packed.number("scale"))
        if not (np.isfinite(self._unit) and np.isfinite(self._scale)):
            raise DataError("`unit` or `scale` is no number", packed.name)

    def fill(self, first: int, out: Floats) -> None:
        raw = np.empty(out.size * self._dtype.itemsize, np.uint8)
        self._fetch(self._vector, first * self._dtype.itemsize, raw)
        np.multiply(raw.view(self._dtype), self._unit, out=out, dtype=np.float32)
        out *= self._scale
        begin, end = first // 8, -(-(first + out.size) // 8)
        bits = np.empty(end - begin, np.uint8)
        self._fetch(self._mask, begin, bits)
        kept = np.unpackbits(bits, bitorder="little")[first - 8 * begin :][: out.size]
        out[kept == 0] = 0
