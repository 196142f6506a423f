"""The exact k-th largest magnitude of a tensor that is seen tile by tile.

A strided sample brackets each wanted rank; one sweep then counts what lies above the bracket and
collects what lies inside it, from which the exact threshold and the position of its last tie
follow. When the sample misled (the counts show it), a histogram of the top 16 magnitude bits and
one of the low 15 bits find the threshold in two more sweeps, whatever the data.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel, reported
from mergekit_lite.kernels.codec import decode
from mergekit_lite.kernels.marks import first_mark
from mergekit_lite.kernels.steps import MAGNITUDE
from mergekit_lite.kernels.tile import load_input, transform_input

_COUNTED: Final = 1024
"""Entries that are counted together before one of them is looked for."""

PIVOTS: Final = 4
"""Magnitudes of a bracket that can be counted instead of collected."""

_WIDTHS = np.array([2, 2, 4, 8], np.int64)


@reported
def _count_above(bits: NDArray[np.uint32], n: int, high: np.uint32) -> int:
    """Return how many magnitudes exceed `high`: fp32 sums of ones are exact in any order."""
    over = np.float32(0.0)
    for i in range(n):
        over += np.float32(1.0) if (bits[i] & MAGNITUDE) > high else np.float32(0.0)
    return int(over)


@reported
def _count_equal(bits: NDArray[np.uint32], n: int, value: np.uint32) -> int:
    """Return how many magnitudes are `value`."""
    equal = np.float32(0.0)
    for i in range(n):
        equal += np.float32(1.0) if (bits[i] & MAGNITUDE) == value else np.float32(0.0)
    return int(equal)


@inlined
def _count_same(bits: NDArray[np.uint32], value: np.uint32) -> int:
    """Return how many patterns are `value`, whole as they are."""
    same = np.uint32(0)
    for i in range(len(bits)):
        same = np.uint32(same + np.uint32(bits[i] == value))
    return int(same)


@inlined
def gathered(
    flags: NDArray[np.uint8],
    seen: NDArray[np.uint32],
    n: int,
    first: int,
    magnitudes: NDArray[np.uint32],
    indices: NDArray[np.int64],
    filled: int,
) -> int:
    """Append the magnitudes that are marked, with their flat indices; return the new fill.

    A fill of one more than there is room for says that they did not fit.
    """
    room = len(magnitudes)
    for i in range(n, (n + 7) // 8 * 8):
        flags[i] = np.uint8(0)
    words = flags[: (n + 7) // 8 * 8].view(np.uint64)
    for word in range((n + 7) // 8):
        # Eight marks at a time: most words are zero, and most others hold one.
        marks = words[word]
        if marks != 0 and filled + 8 > room:
            return room + 1
        while marks != 0:
            lowest, byte = first_mark(marks)
            i = word * 8 + byte
            magnitudes[filled] = np.uint32(np.uint32(seen[i]) & MAGNITUDE)
            indices[filled] = first + i
            filled += 1
            marks = np.uint64(marks ^ lowest)
    return filled


@inlined
def _collect(
    bits: NDArray[np.uint32],
    n: int,
    first: int,
    low: np.uint32,
    high: np.uint32,
    pivots: NDArray[np.int64],
    equal: NDArray[np.int64],
    flags: NDArray[np.uint8],
    magnitudes: NDArray[np.uint32],
    indices: NDArray[np.int64],
    filled: int,
) -> Any:
    """Append the magnitudes in [low, high] with their flat indices; return the new fill.

    Those equal to a pivot are only counted: fine-tuned models differ by few distinct steps of
    their storage dtype, so that one magnitude can be a hundredth of a tensor. A fill of one more
    than there is room for says that they did not fit.
    """
    for k in range(PIVOTS):
        if pivots[k] >= 0:
            equal[k] += _count_equal(bits, n, np.uint32(pivots[k]))
    if low == high and pivots[0] == low:
        return filled  # nothing is left to collect: the usual case where magnitudes tie
    span = np.uint32(high - low)
    # No magnitude has its top bit set, so -1 matches none. One pass, or LLVM does not vectorise.
    p0, p1 = np.uint32(pivots[0]), np.uint32(pivots[1])
    p2, p3 = np.uint32(pivots[2]), np.uint32(pivots[3])
    for i in range(n):
        m = np.uint32(bits[i] & MAGNITUDE)
        inside = np.uint32(m - low) <= span
        flags[i] = np.uint8(inside & (m != p0) & (m != p1) & (m != p2) & (m != p3))
    return gathered(flags, bits, n, first, magnitudes, indices, filled)


@kernel(
    "u1[::1]",
    "i8[::1]",
    "i8[::1]",
    "i8[::1]",
    "i8[:,::1]",
    "f4[:,::1]",
    "i8[:,:,::1]",
    "i8[::1]",
    "i8[:,:,::1]",
    "i8[:,:,::1]",
    "i8",
    "i8",
    "i8[:,::1]",
    "i8[:,::1]",
    "u4[:,::1]",
    "i8[:,::1]",
    "i8[::1]",
    "f4[:,::1]",
    "i8[::1]",
    "i8",
    "i8",
    "i8[:,:,::1]",
)
def scan_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    kinds: NDArray[np.int64],
    floats: NDArray[np.float32],
    ints: NDArray[np.int64],
    depth: NDArray[np.int64],
    brackets: NDArray[np.int64],
    pivots: NDArray[np.int64],
    width: int,
    block: int,
    above: NDArray[np.int64],
    filled: NDArray[np.int64],
    magnitudes: NDArray[np.uint32],
    indices: NDArray[np.int64],
    bad: NDArray[np.int64],
    work: NDArray[np.float32],
    scratch: NDArray[np.int64],
    first: int,
    count: int,
    equal: NDArray[np.int64],
) -> None:
    """Scan one tile for all wanted ranks of all experts at once.

    `brackets[e, r]` is (low, high) of rank r of expert e, low > high where none is wanted;
    `depth[e]` is how many transforms precede the one that asks; `pivots[e, r]` are magnitudes in
    the bracket that are counted, into `equal[e, r]`, and not collected (-1: none). `above` and
    `filled` have the shape (experts, ranks); `magnitudes`, `indices` one row for each of those.
    """
    experts = at.shape[0] - 1
    ranks = brackets.shape[1]
    base, x = work[0], work[1]
    bits, flags = x.view(np.uint32), work[2].view(np.uint8)
    for j in range(block):
        base[j] = np.float32(0.0)
    for start in range(0, count, block):
        n = min(block, count - start)
        if code[0] >= 0:
            bad[0] += decode(raw, at[0] + start * _WIDTHS[code[0]], code[0], base, n)
        for e in range(experts):
            if depth[e] < 0:
                continue
            bad[e + 1] += load_input(e + 1, raw, at, code, is_delta, False, base, start, n, x)
            transform_input(
                kinds[e], floats[e], ints[e], depth[e], x, n, first + start, width, scratch
            )
            for r in range(ranks):
                low, high = brackets[e, r, 0], brackets[e, r, 1]
                if low <= high:
                    slot = e * ranks + r
                    above[e, r] += _count_above(bits, n, np.uint32(high))
                    filled[e, r] = _collect(
                        bits, n, first + start, np.uint32(low), np.uint32(high),
                        pivots[e, r], equal[e, r], flags,
                        magnitudes[slot], indices[slot], filled[e, r],
                    )  # fmt: skip


@kernel(
    "u1[::1]",
    "i8[::1]",
    "i8[::1]",
    "i8[::1]",
    "i8[:,::1]",
    "f4[:,::1]",
    "i8[:,:,::1]",
    "i8",
    "i8",
    "i8",
    "i8",
    "f4[:,::1]",
    "i8[::1]",
    "i8",
    "i8[::1]",
    "u4[:,::1]",
)
def magnitudes_of_tile(
    raw: NDArray[np.uint8],
    at: NDArray[np.int64],
    code: NDArray[np.int64],
    is_delta: NDArray[np.int64],
    kinds: NDArray[np.int64],
    floats: NDArray[np.float32],
    ints: NDArray[np.int64],
    expert: int,
    depth: int,
    width: int,
    block: int,
    work: NDArray[np.float32],
    scratch: NDArray[np.int64],
    first: int,
    begins: NDArray[np.int64],
    out: NDArray[np.uint32],
) -> None:
    """Write magnitude bits of one expert's delta after `depth` transforms to `out`.

    Row k of `out` takes the entries from `begins[k]` on of a tile whose first flat index is
    `first`.
    """
    base, x = work[0], work[1]
    bits = x.view(np.uint32)
    for j in range(block):
        base[j] = np.float32(0.0)
    for k in range(begins.shape[0]):
        for done in range(0, out.shape[1], block):
            n = min(block, out.shape[1] - done)
            start = begins[k] + done
            if code[0] >= 0:
                decode(raw, at[0] + start * _WIDTHS[code[0]], code[0], base, n)
            load_input(expert + 1, raw, at, code, is_delta, False, base, start, n, x)
            transform_input(
                kinds[expert], floats[expert], ints[expert], depth, x, n, first + start, width,
                scratch,
            )  # fmt: skip
            for j in range(n):
                out[k, done + j] = np.uint32(bits[j] & MAGNITUDE)


@kernel("u4[::1]", "i8", "i8[::1]")
def histogram(bits: NDArray[np.uint32], n: int, bins: NDArray[np.int64]) -> None:
    """Add bits 30..15 of `bits[:n]` to 65536 bins."""
    for i in range(n):
        bins[bits[i] >> np.uint32(15)] += 1


@kernel("u4[::1]", "i8", "i8[::1]")
def squares(bits: NDArray[np.uint32], n: int, bins: NDArray[np.int64]) -> None:
    """Add to 65536 pairs by bits 30..15 what sums of squares of `bits[:n]` follow from.

    That is, of the lower 15 bits as a number d: 2^40 + d, and d^2. The first number of a pair has
    room for 2^24 entries.
    """
    for i in range(n):
        each = bits[i]
        at = np.uint32(np.uint32(each >> np.uint32(15)) << np.uint32(1))
        lower = np.int64(each & np.uint32(0x7FFF))
        bins[at] += (1 << 40) + lower
        bins[at | np.uint32(1)] += lower * lower


@kernel("u4[::1]", "i8", "i8", "i8[::1]")
def refine(bits: NDArray[np.uint32], n: int, digit: int, bins: NDArray[np.int64]) -> None:
    """Add bits 14..0 of those `bits[:n]` whose upper bits equal `digit` to 32768 bins."""
    for i in range(n):
        if np.int64(bits[i] >> np.uint32(15)) == digit:
            bins[bits[i] & np.uint32(0x7FFF)] += 1


@kernel("u4[::1]", "i8", "u4", "i8", "i8[::1]")
def nth_equal(
    bits: NDArray[np.uint32], n: int, value: np.uint32, nth: int, found: NDArray[np.int64]
) -> None:
    """Write to `found` the position of the nth entry equal to `value`, or -1, and how many are."""
    found[0], found[1] = -1, 0
    for begin in range(0, n, _COUNTED):
        part = bits[begin : min(begin + _COUNTED, n)]
        equal = _count_same(part, value)
        if found[1] + equal < nth:
            found[1] += equal
            continue
        for i in range(len(part)):
            if part[i] == value:
                found[1] += 1
                if found[1] == nth:
                    found[0] = begin + i
                    return
