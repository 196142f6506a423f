"""A low-rank delta, multiplied out tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels.lora import low_rank_tile, strips

Floats = NDArray[np.float32]


@dataclass
class LowRank:
    """A low-rank delta from its two fp32 factors, in the orientation of the stored weight.

    Attributes:
        left: rows x rank.
        right: rank x width, in `kernels.lora.strips`.
        scale: what the product is multiplied by.
        width: columns of the product.
    """

    left: Floats
    right: Floats
    scale: np.float32
    width: int
    dtype = "F32"
    is_delta = True

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        values = out.view(np.float32)
        low_rank_tile(self.left, self.right, self.scale, self.width, first, count, values)


def product(left: Floats, right: Floats, scale: np.float32) -> LowRank:
    """Return the delta `scale * left @ right`."""
    return LowRank(np.ascontiguousarray(left, np.float32), strips(right), scale, right.shape[1])
