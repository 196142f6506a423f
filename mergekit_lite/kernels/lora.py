"""A tile of a low-rank delta `scale * B @ A`, one fixed order of additions for every device."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel

COLUMNS: Final = 256
"""Columns of a panel: eight ranks of it and a row of the result stay in L1."""
RANKS: Final = 8
"""Ranks that are added while an entry is in a register."""


def padded(left: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (rows x rank) factor with zeros up to a whole number of `RANKS`."""
    rows, rank = left.shape
    out = np.zeros((rows, -(-rank // RANKS) * RANKS), np.float32)
    out[:, :rank] = left
    return out


def panels(right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (rank x width) factor cut into panels of `COLUMNS`, one after the other.

    Ranks of a panel lie side by side in memory. In the factor as it is they are a power of two
    apart for most widths, and push one another out of the cache.
    """
    rank, width = right.shape
    ranks, blocks = -(-rank // RANKS) * RANKS, -(-width // COLUMNS)
    out = np.zeros((blocks, ranks, COLUMNS), np.float32)
    for block in range(blocks):
        part = right[:, block * COLUMNS : (block + 1) * COLUMNS]
        out[block, :rank, : part.shape[1]] = part
    return out.reshape(blocks * ranks, COLUMNS)


@inlined
def add_eight(
    out: NDArray[np.float32], factors: NDArray[np.float32], eight: NDArray[np.float32]
) -> None:
    """Add eight ranks of one row to a panel's worth of entries, one after the other."""
    a0, a1, a2, a3 = factors[0], factors[1], factors[2], factors[3]
    a4, a5, a6, a7 = factors[4], factors[5], factors[6], factors[7]
    r0, r1, r2, r3 = eight[0], eight[1], eight[2], eight[3]
    r4, r5, r6, r7 = eight[4], eight[5], eight[6], eight[7]
    for j in range(COLUMNS):
        total = out[j] + a0 * r0[j] + a1 * r1[j] + a2 * r2[j] + a3 * r3[j]
        out[j] = total + a4 * r4[j] + a5 * r5[j] + a6 * r6[j] + a7 * r7[j]


@kernel("f4[:,::1]", "f4[:,::1]", "f4", "i8", "i8", "i8", "f4[::1]")
def low_rank_tile(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    scale: np.float32,
    width: int,
    first: int,
    count: int,
    out: NDArray[np.float32],
) -> None:
    """Write entries [first, first + count) of `scale * left @ right`, row-major, to `out`.

    The factors are those of `padded` and `panels`, `width` the columns of the product. Each entry
    adds its rank products in order to zero and is multiplied by `scale` last; nothing of this
    depends on the tile.
    """
    ranks = left.shape[1]
    end = first + count
    for j in range(count):
        out[j] = np.float32(0.0)
    for column in range(0, width, COLUMNS):
        panel = right[column // COLUMNS * ranks : (column // COLUMNS + 1) * ranks]
        for k in range(0, ranks, RANKS):
            for row in range(first // width, -(-end // width)):
                # Of the tile's first and last row, only what lies in the tile.
                begin = max(column, first - row * width)
                stop = min(min(column + COLUMNS, width), end - row * width)
                if begin < stop:
                    at = row * width + begin - first
                    part = out[at : at + stop - begin]
                    factors, eight = left[row, k : k + RANKS], panel[k : k + RANKS]
                    if stop - begin == COLUMNS:
                        add_eight(part, factors, eight)
                        continue
                    for j in range(stop - begin):
                        for rank in range(RANKS):
                            part[j] = part[j] + factors[rank] * eight[rank, begin - column + j]
    for j in range(count):
        out[j] = out[j] * scale
