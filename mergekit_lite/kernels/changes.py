"""What `ramplus` asks of a tensor: how many changes experts share, and have alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import kernel
from mergekit_lite.kernels.sums import SUM_BLOCK
from mergekit_lite.kernels.tile import load_inputs

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)


@kernel(
    "u1[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "f4[:,::1]", "f4", "i8[:,::1]", "i8"
)  # fmt: skip
def changes_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    limit: np.float32,
    counts: NDArray[np.int64],
    count: int,
) -> None:
    """Add to `counts[e]` how many changes above a limit others share, and how many they do not."""
    experts = at.shape[0] - 1
    active, x = work[1], work[4:]
    for start in range(0, count, SUM_BLOCK):
        n = min(SUM_BLOCK, count - start)
        load_inputs(raw, at, code, is_delta, False, bad, start, n, work)
        for j in range(n):
            active[j] = _ZERO
        for e in range(experts):
            row = x[e]
            for j in range(n):
                active[j] = active[j] + (_ONE if abs(row[j]) > limit else _ZERO)
        for e in range(experts):
            row = x[e]
            mine, alone = np.uint32(0), np.uint32(0)
            for j in range(n):
                counts_here = abs(row[j]) > limit
                mine = np.uint32(mine + np.uint32(counts_here))
                alone = np.uint32(alone + np.uint32(counts_here & (active[j] == _ONE)))
            counts[e, 0] += np.int64(mine) - np.int64(alone)
            counts[e, 1] += np.int64(alone)
