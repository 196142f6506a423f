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
from mergekit_lite.kernels.marks import places_from
from mergekit_lite.kernels.words import trailing_zeros, word_from

BLOCK: Final = 1 << 16
"""Entries of a block."""
MARKED: Final = 4096
"""Entries that are marked together."""
MOST_BITS: Final = 16
"""Lowest bits of a gap that are written as they are, at most."""
SLACK: Final = 16
"""Bytes behind the codes that may be read (and are not looked at)."""
_ONE: Final = np.uint64(1)
_WORD: Final = np.uint64(64)
_HALF: Final = np.uint64((1 << 32) - 1)


@inlined
def _gather(
    block: NDArray[np.float32],
    limit: np.float32,
    ties: int,
    marks: NDArray[np.uint8],
    places: NDArray[np.uint32],
) -> tuple[int, int]:
    """List the entries of a block that are kept.

    Returns:
        How many there are; how many more of the magnitude `limit` may be kept.
    """
    count = np.uint64(0)
    for start in range(0, block.shape[0], MARKED):
        n = min(MARKED, block.shape[0] - start)
        count = places_from(block[start : start + n], n, limit, marks, places, start, count)
    kept = np.uint64(0)
    for k in range(count):
        place = places[np.uint64(k)]
        equal = abs(block[np.uint64(place)]) == limit
        places[kept] = place
        if not equal:
            kept += _ONE
        elif ties > 0:
            ties -= 1
            kept += _ONE
    return int(kept), ties


@inlined
def _write_codes(
    block: NDArray[np.float32],
    places: NDArray[np.uint32],
    count: int,
    bits: int,
    signed: bool,
    words: NDArray[np.uint64],
) -> int:
    """Write the codes of a block's kept entries; return how many bits there are."""
    raw = block.view(np.uint32)
    low, width = np.uint64((1 << bits) - 1), np.uint64(bits)
    length = width + (np.uint64(2) if signed else _ONE)
    full, held, fill, behind = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
    for k in range(count):
        place = np.uint64(places[np.uint64(k)])
        gap = np.uint64(place - behind)
        behind = place + _ONE
        fill += np.uint64(gap >> width)
        while fill >= _WORD:
            words[full], held = held, np.uint64(0)
            full, fill = full + _ONE, fill - _WORD
        code = np.uint64(np.uint64(np.uint64(gap & low) << _ONE) | _ONE)
        if signed:
            sign = np.uint64(raw[place] >> np.uint32(31))
            code = np.uint64(code | np.uint64(sign << (width + _ONE)))
        held = np.uint64(held | np.uint64(code << fill))
        fill += length
        if fill > _WORD:
            words[full] = held
            full, fill = full + _ONE, fill - _WORD
            held = np.uint64(code >> (length - fill))
    words[full] = held
    return int(full * _WORD + fill)


@kernel(
    "f4[::1]", "f4", "i8[::1]", "i8", "b1", "u1[::1]", "u4[:,::1]", "f4[::1]", "u4[::1]",
    "u1[::1]", "u8[::1]", "f8[::1]", "i8[::1]",
)  # fmt: skip
def rice_encode(
    delta: NDArray[np.float32],
    limit: np.float32,
    ties: NDArray[np.int64],
    bits: int,
    signed: bool,
    out: NDArray[np.uint8],
    index: NDArray[np.uint32],
    values: NDArray[np.float32],
    places: NDArray[np.uint32],
    marks: NDArray[np.uint8],
    words: NDArray[np.uint64],
    total: NDArray[np.float64],
    ends: NDArray[np.int64],
) -> None:
    """Write the codes of all entries whose magnitude reaches a threshold.

    Args:
        delta: the entries, from the begin of a block on.
        limit: the least magnitude that is kept.
        ties: how many of just that magnitude are kept; those that were are taken off.
        bits: lowest bits of a gap that are written as they are, `MOST_BITS` at most.
        signed: write the signs.
        out: room for the codes and `SLACK` bytes.
        index: kept entries and bytes of each block.
        values: the kept entries; unused where it is empty.
        places: scratch of a block's entries.
        marks: scratch of `MARKED` entries.
        words: scratch of `words_of_block`.
        total: the magnitudes of the kept entries are added up here, in their order.
        ends: bytes and kept entries that have been written; -1 bytes if there was no room.
    """
    byte, kept, left, magnitudes = ends[0], ends[1], ties[0], total[0]
    for number in range(index.shape[0]):
        begin = number * BLOCK
        block = delta[begin : min(begin + BLOCK, delta.shape[0])]
        count, left = _gather(block, limit, left, marks, places)
        used = (_write_codes(block, places, count, bits, signed, words) + 7) // 8
        if byte + used > out.shape[0]:
            ends[0] = -1
            return
        written, room = words.view(np.uint8)[:used], out[byte : byte + used]
        for i in range(used):
            room[i] = written[i]
        for k in range(count):
            magnitudes += np.float64(abs(block[np.uint64(places[np.uint64(k)])]))
        if values.shape[0]:
            for k in range(count):
                values[kept + k] = block[np.uint64(places[np.uint64(k)])]
        index[number, 0], index[number, 1] = np.uint32(count), np.uint32(used)
        byte, kept = byte + used, kept + count
    ends[0], ends[1], ties[0], total[0] = byte, kept, left, magnitudes


def words_of_block(bits: int) -> int:
    """Return how many words the codes of a block may take.

    Every gap has its bits, and together they hold as many multiples as fit in the block.
    """
    return (BLOCK * (bits + 2) + (BLOCK >> bits)) // 64 + 2


@kernel(
    "u1[::1]", "i8[:,::1]", "i8", "i8", "i8", "f4", "f4[::1]", "i8", "i8", "i8", "u4[::1]",
    "f4[::1]", "i8[::1]",
)  # fmt: skip
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
    size: int,
    places: NDArray[np.uint32],
    found: NDArray[np.float32],
    ends: NDArray[np.int64],
) -> None:
    """List the kept entries of a range.

    Args:
        raw: the codes of the blocks and `SLACK` bytes or more.
        index: for each block of the tensor how many kept entries and bytes lie before it.
        block: the first block in `raw`.
        blocks: how many there are.
        bits: see `rice_encode`.
        scale: what signs are multiplied by; values too.
        values: the kept entries; empty where only signs are.
        values_from: number of the kept entry that `values` begins with.
        first: the first entry of the range.
        size: how many entries the range has.
        places: where in the range kept entries are; room for all of the blocks, and one more.
        found: what they are.
        ends: how many have been listed; how many codes lead beyond their block.
    """
    signed = values.shape[0] == 0
    low, width = np.uint64((1 << bits) - 1), np.uint64(bits)
    plus = np.float32(scale).view(np.uint32)
    range_size, listed, bits_of = np.uint64(size), np.uint64(0), found.view(np.uint32)
    length = width + (np.uint64(2) if signed else _ONE)
    for number in range(block, block + blocks):
        bit = np.uint64((index[number, 1] - index[block, 1]) * 8)
        stop = np.uint64((index[number + 1, 1] - index[block, 1]) * 8)
        end = np.uint64(BLOCK)
        here = np.uint64(np.int64(number) * BLOCK - first)
        entry = np.uint64(0)  # in the block: the one behind the last kept one
        for k in range(index[number, 0], index[number + 1, 0]):
            word = np.uint64(word_from(raw, bit >> np.uint64(3)) >> np.uint64(bit & np.uint64(7)))
            unary = np.uint64(0)
            while word & _HALF == np.uint64(0) and bit < stop:
                unary, bit = unary + np.uint64(32), bit + np.uint64(32)
                word = word_from(raw, bit >> np.uint64(3)) >> np.uint64(bit & np.uint64(7))
            if bit >= stop:
                ends[1] += 1
                break
            # Of the 57 bits that are there, a code takes 32 + 16 + 1 at most.
            zeros = np.uint64(trailing_zeros(np.uint64(word & _HALF)))
            word = np.uint64(word >> (zeros + _ONE))
            bit += zeros + length
            entry += np.uint64((unary + zeros) << width) + np.uint64(word & low)
            if entry >= end:
                ends[1] += 1
                break
            at = here + entry
            # Written always and counted only inside the range.
            places[listed] = np.uint32(at)
            if signed:
                sign = np.uint32(np.uint32(np.uint64(word >> width) & _ONE) << np.uint32(31))
                bits_of[listed] = np.uint32(plus ^ sign)
            else:
                found[listed] = values[np.uint64(k - values_from)] * scale
            listed += np.uint64(at < range_size)
            entry += _ONE
    ends[0] = np.int64(listed)


@kernel("u4[::1]", "f4[::1]", "i8", "f4[::1]")
def put_tile(
    places: NDArray[np.uint32], found: NDArray[np.float32], count: int, out: NDArray[np.float32]
) -> None:
    """Write listed entries into a range, all others zero.

    Args:
        places, found, count: as `rice_decode` lists them.
        out: the range.
    """
    for j in range(out.shape[0]):
        out[j] = np.float32(0.0)
    for k in range(count):
        out[np.uint64(places[np.uint64(k)])] = found[np.uint64(k)]
