"""Golomb-Rice codes of the gaps between kept entries, in blocks that are decoded by themselves.

A block is 65,536 entries of the flat tensor and begins at a byte of its own. Bits run from the
lowest of a byte on. For each kept entry there are: as many zeros as the gap holds 2 ** bits, a one,
the gap's lowest bits, and where only signs are kept a bit that is one for minus. A gap is the
number of dropped entries since the last kept one of the block.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined, kernel
from mergekit_lite.kernels.steps import MAGNITUDE

BLOCK: Final = 1 << 16
"""Entries of a block."""
SLACK: Final = 16
"""Bytes behind the codes that may be read (and are not looked at)."""
_ONE: Final = np.uint64(1)
_HALF: Final = np.uint64((1 << 32) - 1)


@inlined
def trailing_zeros(word: np.uint64) -> int:
    """Return how many zeros a word other than 0 has below its lowest one, if that is below 2^62."""
    lowest = np.int64(word & (~word + _ONE))
    # A power of two is its exponent.
    return int(np.float64(lowest).view(np.int64) >> 52) - 1023


@inlined
def word_at(words: NDArray[np.uint64], bit: np.uint64) -> np.uint64:
    """Return the 64 bits from `bit` on."""
    at, shift = np.uint64(bit >> np.uint64(6)), np.uint64(bit & np.uint64(63))
    # In two steps, because a shift by 64 is not defined.
    upper = np.uint64(words[at + _ONE] << _ONE) << (np.uint64(63) - shift)
    return np.uint64(np.uint64(words[at] >> shift) | upper)


@inlined
def gather(
    raw: NDArray[np.uint32],
    begin: int,
    end: int,
    limit: np.uint32,
    ties: int,
    places: NDArray[np.uint32],
) -> tuple[int, int]:
    """List the entries of [begin, end) that are kept, counted from `begin`.

    Returns:
        How many there are; how many more of the magnitude `limit` may be kept.
    """
    count = np.uint64(0)
    # Written always and counted only if kept: which entries are is a branch nobody can predict.
    for i in range(end - begin):
        places[count] = np.uint32(i)
        magnitude = np.uint32(raw[np.uint64(begin + i)] & MAGNITUDE)
        count += np.uint64(magnitude >= limit)
    kept = np.uint64(0)
    for k in range(count):
        place = places[np.uint64(k)]
        equal = np.uint32(raw[np.uint64(begin + place)] & MAGNITUDE) == limit
        places[kept] = place
        if not equal:
            kept += _ONE
        elif ties > 0:
            ties -= 1
            kept += _ONE
    return int(kept), ties


@kernel(
    "f4[::1]", "i8", "i8[::1]", "i8", "b1", "u1[::1]", "u4[:,::1]", "f4[::1]", "u4[::1]",
    "i8[::1]",
)  # fmt: skip
def rice_encode(
    delta: NDArray[np.float32],
    threshold: int,
    ties: NDArray[np.int64],
    bits: int,
    signed: bool,
    out: NDArray[np.uint8],
    index: NDArray[np.uint32],
    values: NDArray[np.float32],
    places: NDArray[np.uint32],
    ends: NDArray[np.int64],
) -> None:
    """Write the codes of all entries whose magnitude reaches a threshold.

    Args:
        delta: the entries, from the begin of a block on.
        threshold: bits of the least magnitude that is kept.
        ties: how many of just that magnitude are kept; those that were are taken off.
        bits: lowest bits of a gap that are written as they are, 32 at most.
        signed: write the signs.
        out: room for the codes and `SLACK` bytes.
        index: kept entries and bytes of each block.
        values: the kept entries; unused where it is empty.
        places: scratch of a block's entries, and one more.
        ends: bytes and kept entries that have been written; -1 bytes if there was no room.
    """
    raw = delta.view(np.uint32)
    low, width = np.uint64((1 << bits) - 1), np.uint64(bits)
    byte, kept, left = ends[0], ends[1], ties[0]
    for block in range(index.shape[0]):
        begin = block * BLOCK
        end = min(begin + BLOCK, delta.shape[0])
        count, left = gather(raw, begin, end, np.uint32(threshold), left, places)
        # Every gap has its bits, and together they hold as many multiples as fit in the block.
        most = count * (bits + 2) + ((end - begin) >> bits)
        if byte + most // 8 + 9 > out.shape[0]:
            ends[0] = -1
            return
        at, last, held, fill = byte, -1, np.uint64(0), np.uint64(0)
        for k in range(count):
            place = int(places[np.uint64(k)])
            gap = np.uint64(place - last - 1)
            last = place
            unary = np.uint64(gap >> width)
            while fill + unary >= np.uint64(8):
                out[np.uint64(at)] = np.uint8(held)
                at += 1
                held = np.uint64(held >> np.uint64(8))
                step = np.uint64(8)
                if fill >= step:
                    fill -= step
                else:
                    unary -= step - fill
                    fill = np.uint64(0)
            fill += unary
            held |= np.uint64(_ONE << fill)
            fill += _ONE
            held |= np.uint64(np.uint64(gap & low) << fill)
            fill += width
            if signed:
                sign = np.uint64(raw[np.uint64(begin + place)] >> np.uint32(31))
                held |= np.uint64(sign << fill)
                fill += _ONE
            if values.shape[0]:
                values[kept + k] = delta[np.uint64(begin + place)]
        while fill > np.uint64(0):
            out[np.uint64(at)] = np.uint8(held)
            at += 1
            held = np.uint64(held >> np.uint64(8))
            fill -= min(fill, np.uint64(8))
        index[block, 0], index[block, 1] = np.uint32(count), np.uint32(at - byte)
        byte, kept = at, kept + count
    ends[0], ends[1], ties[0] = byte, kept, left


@kernel("u1[::1]", "i8[:,::1]", "i8", "i8", "i8", "f4", "f4[::1]", "i8", "i8", "f4[::1]", "i8[::1]")
def rice_decode(
    raw: NDArray[np.uint8],
    index: NDArray[np.int64],
    block: int,
    blocks: int,
    bits: int,
    scale: np.float32,
    values: NDArray[np.float32],
    values_from: int,
    first: int,
    out: NDArray[np.float32],
    wrong: NDArray[np.int64],
) -> None:
    """Write a range of entries: kept ones as coded, all others zero.

    Args:
        raw: the codes of the blocks and `SLACK` bytes or more, a multiple of 8 together.
        index: for each block of the tensor how many kept entries and bytes lie before it.
        block: the first block in `raw`.
        blocks: how many there are.
        bits: see `rice_encode`.
        scale: what signs are multiplied by; values too.
        values: the kept entries; empty where only signs are.
        values_from: number of the kept entry that `values` begins with.
        first: the first entry of the range.
        out: the range.
        wrong: counts codes that lead beyond their block.
    """
    words, target = raw.view(np.uint64), out.view(np.uint32)
    for j in range(out.shape[0]):
        out[j] = np.float32(0.0)
    signed = values.shape[0] == 0
    low, width = np.uint64((1 << bits) - 1), np.uint64(bits)
    plus = np.float32(scale).view(np.uint32)
    size = np.uint64(out.shape[0])
    for number in range(block, block + blocks):
        bit = np.uint64((index[number, 1] - index[block, 1]) * 8)
        stop = np.uint64((index[number + 1, 1] - index[block, 1]) * 8)
        end = np.uint64(BLOCK)
        here = np.int64(number) * BLOCK - first
        entry = np.uint64(0)  # in the block: the one behind the last kept one
        for k in range(index[number, 0], index[number + 1, 0]):
            word = word_at(words, bit)
            unary = np.uint64(0)
            while word & _HALF == np.uint64(0) and bit < stop:
                unary, bit = unary + np.uint64(32), bit + np.uint64(32)
                word = word_at(words, bit)
            if bit >= stop:
                wrong[0] += 1
                break
            zeros = np.uint64(trailing_zeros(np.uint64(word & _HALF)))
            used = zeros + _ONE
            bit += used
            # Shifted by 32 at most, so that 32 bits are left; a gap's bits and a sign are 33.
            word = np.uint64(word >> used)
            if used + width >= np.uint64(64):
                word = word_at(words, bit)
            entry += np.uint64((unary + zeros) << width) + np.uint64(word & low)
            if entry >= end:
                wrong[0] += 1
                break
            at = np.uint64(here + np.int64(entry))
            if signed:
                sign = np.uint32(np.uint32(np.uint64(word >> width) & _ONE) << np.uint32(31))
                bit += width + _ONE
                if at < size:
                    target[at] = np.uint32(plus ^ sign)
            else:
                bit += width
                if at < size:
                    out[at] = values[np.uint64(k - values_from)] * scale
            entry += _ONE
