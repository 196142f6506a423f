"""`factors_sparse`: a matrix as the product of two of low rank, and few entries beside it."""

from __future__ import annotations

import numpy as np

from mergekit_lite.checkpoint.coded.grid import Fetch
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress._spec import scheme
from mergekit_lite.compress._types import Encoded, Floats
from mergekit_lite.compress.schemes.factors import Factors, factor_bytes
from mergekit_lite.compress.schemes.rice import Rice, index_bytes
from mergekit_lite.kernels.lora import low_rank_tile
from mergekit_lite.kernels.rice import put_tile, rice_decode


def both(factors: Encoded, sparse: Encoded) -> Encoded:
    """Return what two schemes store as one tensor; their parts have names of their own."""
    parts = {**factors.parts, **sparse.parts}
    return Encoded("factors_sparse", parts, {**factors.numbers, **sparse.numbers})


def _held(packed: Packed) -> int:
    return factor_bytes(packed) + index_bytes(packed)


@scheme("factors_sparse", kernels=[low_rank_tile, rice_decode, put_tile], held=_held)
class FactorsSparse:
    """Adds what both decode."""

    def __init__(self, packed: Packed, fetch: Fetch) -> None:
        self._factors, self._rice = Factors(packed, fetch), Rice(packed, fetch)

    def fill(self, first: int, out: Floats) -> None:
        self._factors.fill(first, out)
        beside = np.empty_like(out)
        self._rice.fill(first, beside)
        out += beside
