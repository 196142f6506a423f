"""Arcee fusion: divergences of rows, importances of entries, and the choice between two models."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel
from mergekit_lite.kernels.codec import encode
from mergekit_lite.kernels.elementary import exponential, logarithm
from mergekit_lite.kernels.lanes import sum_of_terms
from mergekit_lite.kernels.sums import SUM_BLOCK
from mergekit_lite.kernels.tile import load_inputs

FLOOR: Final = 1e-8
"""Added to every probability, so that a row's divergence stays finite."""

_WIDTHS = np.array([2, 2, 4, 8], np.int64)


@inlined
def largest_key(x: NDArray[np.float32], n: int, key: np.int32) -> np.int32:
    """Return the larger of `key` and those of `x[:n]`: whole numbers in the order of the entries.

    Whole numbers, because a running maximum of fp32 numbers is not vectorised.
    """
    bits = x.view(np.int32)
    for j in range(n):
        key = max(key, np.int32(bits[j] ^ ((bits[j] >> np.int32(31)) & np.int32(0x7FFFFFFF))))
    return key


@inlined
def softmax(wide: NDArray[np.float64], width: int, top: float) -> float:
    """Replace numbers by their exponentials over `top`; return one over the sum of these."""
    total = 0.0
    for begin in range(0, width, SUM_BLOCK):
        n = min(SUM_BLOCK, width - begin)
        part = wide[begin : begin + n]
        for j in range(n):
            part[j] = exponential(part[j] - top)
        total += sum_of_terms(wide[begin:], n)
    return 1.0 / total


@inlined
def divergence(
    p: NDArray[np.float64], q: NDArray[np.float64], of_p: float, of_q: float, width: int
) -> float:
    """Return the sum of p log(p / q), p and q times the factors given; `p` is overwritten."""
    total = 0.0
    for begin in range(0, width, SUM_BLOCK):
        n = min(SUM_BLOCK, width - begin)
        left, right = p[begin : begin + n], q[begin : begin + n]
        for j in range(n):
            one = left[j] * of_p + FLOOR
            left[j] = logarithm(one / (right[j] * of_q + FLOOR)) * one
        total += sum_of_terms(p[begin:], n)
    return max(total, 0.0)


@kernel(
    "u1[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "f4[:,::1]", "f8[:,::1]", "i8", "i8",
    "f8[::1]",
)  # fmt: skip
def divergence_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    wide: NDArray[np.float64],
    width: int,
    count: int,
    out: NDArray[np.float64],
) -> None:
    """Write how far the softmax of each row diverges, the second model's from the first one's.

    `wide` is memory: two rows of the next multiple of 16 above `width`.
    """
    for row in range(count // width):
        low, high = np.int32(-0x7FFFFFFF), np.int32(-0x7FFFFFFF)
        for begin in range(0, width, SUM_BLOCK):
            n = min(SUM_BLOCK, width - begin)
            load_inputs(raw, at, code, is_delta, True, bad, row * width + begin, n, work)
            low, high = largest_key(work[4], n, low), largest_key(work[5], n, high)
            for i in range(2):
                part, entries = wide[i, begin : begin + n], work[4 + i]
                for j in range(n):
                    part[j] = np.float64(entries[j])
        q, p = wide[0], wide[1]
        of_q = softmax(q, width, value_of(low))
        of_p = softmax(p, width, value_of(high))
        out[row] = divergence(p, q, of_p, of_q, width)


@inlined
def value_of(key: np.int32) -> float:
    """Return the number that has a key of `largest_key`."""
    bits = np.int32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.float64(bits.view(np.float32))


@inlined
def importance(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    n: int,
    first: int,
    width: int,
    divergences: NDArray[np.float64],
    out: NDArray[np.float32],
) -> None:
    """Write the difference of two models times the divergence of its row to `out[:n]`."""
    done = 0
    while done < n:
        row = (first + done) // width
        end = min(n, (row + 1) * width - first)
        a, b, o, factor = x[done:end], y[done:end], out[done:end], divergences[row]
        for j in range(end - done):
            o[j] = np.float32(np.float64(abs(np.float32(b[j] - a[j]))) * factor)
        done = end


@kernel(
    "u1[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "f4[:,::1]", "i8", "f8[::1]", "i8",
    "i8", "f4[::1]",
)  # fmt: skip
def importance_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    width: int,
    divergences: NDArray[np.float64],
    first: int,
    count: int,
    out: NDArray[np.float32],
) -> None:
    """Write the importance of each entry of a tile from flat index `first`."""
    for start in range(0, count, SUM_BLOCK):
        n = min(SUM_BLOCK, count - start)
        load_inputs(raw, at, code, is_delta, True, bad, start, n, work)
        part = out[start : start + n]
        importance(work[4], work[5], n, first + start, width, divergences, part)


@kernel(
    "u1[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "i8[::1]", "f4[:,::1]", "i8", "f8[::1]", "f8",
    "u1[::1]", "i8", "i8", "i8",
)  # fmt: skip
def fusion_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    width: int,
    divergences: NDArray[np.float64],
    limit: float,
    out: NDArray[np.uint8],
    out_code: int,
    first: int,
    count: int,
) -> None:
    """Write the second model's entries whose importance reaches the limit, else the first's."""
    scores = work[1]
    for start in range(0, count, SUM_BLOCK):
        n = min(SUM_BLOCK, count - start)
        load_inputs(raw, at, code, is_delta, True, bad, start, n, work)
        x, y = work[4], work[5]
        importance(x, y, n, first + start, width, divergences, scores)
        for j in range(n):
            x[j] = y[j] if np.float64(scores[j]) >= limit else x[j]
        bad[-1] += encode(x, n, out, start * _WIDTHS[out_code], out_code)
