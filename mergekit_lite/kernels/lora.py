"""A tile of a low-rank delta `scale * B @ A`, one fixed order of additions for every device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import kernel


@kernel("f4[:,::1]", "f4[:,::1]", "f4", "i8", "i8", "f4[::1]")
def low_rank_tile(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    scale: np.float32,
    first: int,
    count: int,
    out: NDArray[np.float32],
) -> None:
    """Write entries [first, first + count) of `scale * left @ right`, row-major, to `out`.

    `left` is (rows x rank), `right` (rank x width). Each entry adds its rank products in order
    and is multiplied by `scale` last.
    """
    rank, width = right.shape
    done = 0
    while done < count:
        row = (first + done) // width
        column = (first + done) % width
        n = min(width - column, count - done)
        part = out[done : done + n]
        part[:] = np.float32(0.0)
        for k in range(rank):
            factor = left[row, k]
            line = right[k, column : column + n]
            for j in range(n):
                part[j] = part[j] + factor * line[j]
        for j in range(n):
            part[j] = part[j] * scale
        done += n
