"""`bands`: a matrix as a product of low rank, whose factors have fewer bits from band to band.

Band b has `left{b}`, `right{b}`: codes of the columns of U (rows x rank) and of the rows of V
(rank x width); `{part}_scales` in fp16 and `{part}_zeros`, codes of zero, for each group of a line;
and `values{b}` in fp32. What it adds is `(U * values) V`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.coded.grid import Fetch, fetched
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress._spec import scheme
from mergekit_lite.compress._types import Encoded, Floats
from mergekit_lite.compress.grouped import Grid
from mergekit_lite.compress.packing import pack, packed_bytes, unpack
from mergekit_lite.errors import DataError
from mergekit_lite.kernels.lora import low_rank_tile, strips

Part = dict[str, NDArray[Any]]


def stored_grid(grid: Grid, name: str) -> Part:
    """Return the parts that one factor of a band is stored as."""
    return {
        name: pack(grid.codes.reshape(-1), grid.bits),
        f"{name}_scales": grid.scales,
        f"{name}_zeros": grid.zeros,
    }


def encoded(bands: list[tuple[Grid, Floats, Grid]], group: int) -> Encoded:
    """Return the bands of a matrix, each as (rows x rank), values and (rank x width)."""
    parts: Part = {}
    numbers: dict[str, float] = {"bands": len(bands), "group": group}
    for at, (left, values, right) in enumerate(bands):
        numbers |= {f"bits{at}": left.bits, f"rank{at}": len(values)}
        parts |= {f"values{at}": values}
        parts |= stored_grid(left, f"left{at}") | stored_grid(right, f"right{at}")
    return Encoded("bands", parts, numbers)


def _held(packed: Packed) -> int:
    """Return the bytes of both factors in fp32, and of copies that make them."""
    count = int(packed.numbers.get("bands", 0))
    rank = sum(int(packed.numbers.get(f"rank{at}", 0)) for at in range(count))
    return 12 * rank * sum(packed.shape)


@scheme("bands", kernels=[low_rank_tile], held=_held)
class Bands:
    """Multiplies out what is asked for; both factors are in memory."""

    def __init__(self, packed: Packed, fetch: Fetch) -> None:
        if len(packed.shape) != 2:
            raise DataError(f"bands of a {packed.shape} tensor", packed.name)
        self._packed, self._fetch, self._group = packed, fetch, int(packed.number("group"))
        rows, self._width = packed.shape
        lefts, rights = [], []
        for at in range(int(packed.number("bands"))):
            bits, rank = int(packed.number(f"bits{at}")), int(packed.number(f"rank{at}"))
            if not (1 <= bits <= 8 and self._group >= 1):
                raise DataError(f"codes of {bits} bits in groups of {self._group}", packed.name)
            values = fetched(fetch, packed.part(f"values{at}", "F32", rank)).view(np.float32)
            lefts.append(self._grid(f"left{at}", rows, rank, bits) * values)
            rights.append(self._grid(f"right{at}", rank, self._width, bits))
        self._left = np.ascontiguousarray(np.concatenate(lefts, axis=1))
        self._right = strips(np.concatenate(rights))

    def _grid(self, name: str, lines: int, width: int, bits: int) -> Floats:
        packed, fetch, groups = self._packed, self._fetch, -(-width // self._group)
        count = packed_bytes(lines * width, bits)
        codes = unpack(fetched(fetch, packed.part(name, "U8", count)), bits, lines * width)
        scales = fetched(fetch, packed.part(f"{name}_scales", "F16", lines * groups))
        zeros = fetched(fetch, packed.part(f"{name}_zeros", "U8", lines * groups))
        grid = Grid(
            codes.reshape(lines, width),
            scales.view(np.float16).reshape(lines, groups),
            zeros.reshape(lines, groups),
            bits,
            self._group,
        )
        return grid.values()

    def fill(self, first: int, out: Floats) -> None:
        one = np.float32(1)
        low_rank_tile(self._left, self._right, one, self._width, first, out.size, out)
