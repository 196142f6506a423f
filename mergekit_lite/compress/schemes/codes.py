"""`codes`: every entry as a code of 1, 2, 3, 4 or 8 bits, with a scale for each group of a row.

A code of one bit is a sign: 0 for plus, 1 for minus. Others stand for `code - zero`, where `zero`
is `2 ** (bits - 1)` unless the patch says another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.coded.grid import Fetch, fetched
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress._spec import scheme
from mergekit_lite.compress._types import Encoded, Floats, size_of, width_of
from mergekit_lite.compress.packing import pack, packed_bytes
from mergekit_lite.errors import DataError
from mergekit_lite.kernels.bits import codes_tile

WIDTHS = (1, 2, 3, 4, 8)


def encoded(
    codes: NDArray[np.uint8], bits: int, scales: Floats, group: int, zero: int | None = None
) -> Encoded:
    """Return codes packed, the first of a byte in its lowest bits.

    Args:
        codes: of all entries, flat.
        bits: of a code.
        scales: (rows, groups of a row), or (1, 1) for the whole tensor.
        group: entries of a row that share a scale.
        zero: the code of zero, where it is not the middle one.
    """
    parts: dict[str, NDArray[Any]] = {
        "codes": pack(codes, bits),
        "scales": scales.astype(np.float32),
    }
    numbers = {"bits": bits, "group": group}
    return Encoded("codes", parts, numbers if zero is None else {**numbers, "zero": zero})


def _scale_bytes(packed: Packed) -> int:
    return packed.parts["scales"].nbytes if "scales" in packed.parts else 0


@scheme("codes", kernels=[codes_tile], held=_scale_bytes)
class Codes:
    """Reads the bytes that a range lies in."""

    def __init__(self, packed: Packed, fetch: Fetch) -> None:
        self._bits, self._group = int(packed.number("bits")), int(packed.number("group"))
        if self._bits not in WIDTHS or self._group < 1:
            what = f"its codes are of {self._bits} bits in groups of {self._group}"
            raise DataError(what, packed.name)
        size, self._width, self._fetch = size_of(packed), width_of(packed), fetch
        self._codes = packed.part("codes", "U8", packed_bytes(size, self._bits))
        info = packed.part("scales", "F32")
        groups = -(-self._width // self._group)
        if info.shape not in ((1, groups), (size // self._width, groups)):
            raise DataError(f"its scales have shape {list(info.shape)}", packed.name)
        self._scales = fetched(fetch, info).view(np.float32).reshape(info.shape)
        zero = packed.numbers.get("zero", 1 << (self._bits - 1))
        table = np.arange(1 << self._bits, dtype=np.float32) - np.float32(zero)
        self._table = np.array([1, -1], np.float32) if self._bits == 1 else table

    def fill(self, first: int, out: Floats) -> None:
        begin = first * self._bits // 8
        end = packed_bytes(first + out.size, self._bits)
        raw = np.zeros(end - begin + 1, np.uint8)  # one behind the last may be looked at
        self._fetch(self._codes, begin, raw[:-1])
        codes_tile(
            raw, first * self._bits - 8 * begin, self._bits, self._table, self._scales,
            self._width, self._group, first, out,
        )  # fmt: skip
