"""Transforms on one block of one expert's delta; each is the twin of an op of the same name."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined

IDENTITY: Final = 0
CUT: Final = 1
BAND: Final = 2
DARE: Final = 3
ROW_BAND: Final = 4
ROW_DROP: Final = 5
ROW_KEPT: Final = 6
FAR: Final = 7

MAGNITUDE = np.uint32(0x7FFFFFFF)


@inlined
def keep_top(x: NDArray[np.float32], n: int, first: int, threshold: np.uint32, until: int) -> None:
    """Zero what is not among the k largest magnitudes, given as (threshold, until)."""
    bits = x.view(np.uint32)
    # Ties are decided by position, so a block is all before, all after or astride `until`.
    edge = min(max(until - first, 0), n)
    for i in range(edge):
        m = bits[i] & MAGNITUDE
        bits[i] = bits[i] if m >= threshold else np.uint32(0)
    for i in range(edge, n):
        m = bits[i] & MAGNITUDE
        bits[i] = bits[i] if m > threshold else np.uint32(0)


@inlined
def drop_top(x: NDArray[np.float32], n: int, first: int, threshold: np.uint32, until: int) -> None:
    """Zero the k largest magnitudes, given as (threshold, until)."""
    bits = x.view(np.uint32)
    edge = min(max(until - first, 0), n)
    for i in range(edge):
        m = bits[i] & MAGNITUDE
        bits[i] = np.uint32(0) if m >= threshold else bits[i]
    for i in range(edge, n):
        m = bits[i] & MAGNITUDE
        bits[i] = np.uint32(0) if m > threshold else bits[i]


@inlined
def keep_far(x: NDArray[np.float32], n: int, mean: np.float32, limit: np.float32) -> None:
    """Zero what is not farther than `limit` from `mean`."""
    for i in range(n):
        x[i] = x[i] if abs(np.float32(x[i] - mean)) > limit else np.float32(0.0)


@inlined
def mixed(a: np.uint32) -> np.uint32:
    """Return the 32-bit finaliser of the counter generator."""
    a = np.uint32(a ^ (a >> np.uint32(16)))
    a = np.uint32(a * np.uint32(0x7FEB352D))
    a = np.uint32(a ^ (a >> np.uint32(15)))
    a = np.uint32(a * np.uint32(0x846CA68B))
    return np.uint32(a ^ (a >> np.uint32(16)))


@inlined
def drop_random(
    x: NDArray[np.float32],
    n: int,
    first: int,
    key_low: int,
    key_high: int,
    keep: int,
    factor: np.float32,
) -> None:
    """Zero entries whose 32-bit draw is not below `keep`, and multiply the rest by `factor`."""
    if keep > 0xFFFFFFFF:
        for i in range(n):
            x[i] = x[i] * factor
        return
    limit = np.uint32(keep)
    done = 0
    while done < n:
        # The high word of the flat index is constant up to the next multiple of 2**32.
        high = (first + done) >> 32
        stop = min(n, ((high + 1) << 32) - first)
        counter = np.uint32((first + done + key_low) & 0xFFFFFFFF)
        salt = np.uint32((key_high ^ (high * 0x9E3779B9)) & 0xFFFFFFFF)
        part = x[done:stop]
        # One loop from 0, all in registers: split or offset ones were measured 3 times slower.
        for i in range(stop - done):
            draw = mixed(np.uint32(mixed(np.uint32(counter + np.uint32(i))) ^ salt))
            part[i] = part[i] * factor if draw < limit else np.float32(0.0)
        done = stop
