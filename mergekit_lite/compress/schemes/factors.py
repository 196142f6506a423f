"""`factors`: a matrix as the product of two of low rank."""

from __future__ import annotations

import numpy as np

from mergekit_lite.checkpoint import DTYPE_BYTES, TensorInfo
from mergekit_lite.checkpoint.coded.grid import Fetch, fetched
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress._spec import scheme
from mergekit_lite.compress._types import Encoded, Floats
from mergekit_lite.errors import DataError
from mergekit_lite.kernels.lora import low_rank_tile, strips


def encoded(left: Floats, right: Floats, dtype: str) -> Encoded:
    """Return two factors, (rows x rank) and (rank x width).

    Args:
        left, right: the factors.
        dtype: in which they are stored, `float16` or `float32`.
    """
    kind = np.float16 if dtype == "float16" else np.float32
    return Encoded("factors", {"left": left.astype(kind), "right": right.astype(kind)})


def factor_bytes(packed: Packed) -> int:
    """Return the bytes that decoding holds: both factors in fp32, and copies that make them."""
    found = [part for name, part in packed.parts.items() if name in ("left", "right")]
    return 3 * sum(4 * part.nbytes // DTYPE_BYTES[part.dtype] for part in found)


@scheme("factors", kernels=[low_rank_tile], held=factor_bytes)
class Factors:
    """Multiplies out what is asked for; both factors are in memory."""

    def __init__(self, packed: Packed, fetch: Fetch) -> None:
        left, right = (self._read(packed, name, fetch) for name in ("left", "right"))
        rows, width = packed.shape if len(packed.shape) == 2 else (-1, -1)
        if left.shape[0] != rows or right.shape[1] != width or left.shape[1] != right.shape[0]:
            what = f"factors {list(left.shape)} and {list(right.shape)} of a {packed.shape} tensor"
            raise DataError(what, packed.name)
        self._left, self._right, self._width = left, strips(right), width

    @staticmethod
    def _read(packed: Packed, name: str, fetch: Fetch) -> Floats:
        info = packed.parts.get(name) or TensorInfo(name, "", (), "", 0)
        if info.dtype not in ("F16", "F32") or len(info.shape) != 2:
            raise DataError(f"`{name}` is no factor", packed.name)
        kind = np.float16 if info.dtype == "F16" else np.float32
        return fetched(fetch, info).view(kind).reshape(info.shape).astype(np.float32)

    def fill(self, first: int, out: Floats) -> None:
        one = np.float32(1)
        low_rank_tile(self._left, self._right, one, self._width, first, out.size, out)
