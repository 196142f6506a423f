"""Small integers side by side in bytes, the first of a byte in its lowest bits."""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import NDArray


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return flat codes, each below `2 ** bits` and of 1 to 8 bits, without gaps.

    Code i lies in bits `i * bits` and on; a code may begin in one byte and end in the next.
    """
    per_word, word_bytes = 8 // gcd(bits, 8), bits // gcd(bits, 8)
    padded = np.zeros(-(-codes.size // per_word) * per_word, np.uint8)
    padded[: codes.size] = codes
    lanes = padded.reshape(-1, per_word)
    kind = np.dtype("<u1" if word_bytes == 1 else "<u8")
    words = np.zeros(len(lanes), kind)
    for place in range(per_word):
        words |= np.left_shift(lanes[:, place], place * bits, dtype=kind)
    raw = words.view(np.uint8).reshape(-1, kind.itemsize)
    return raw[:, :word_bytes].reshape(-1)[: packed_bytes(codes.size, bits)].copy()


def unpack(raw: NDArray[np.uint8], bits: int, count: int, first: int = 0) -> NDArray[np.uint8]:
    """Return `count` codes, the first of which begins at bit `first`."""
    wide = np.zeros(len(raw) + 1, np.uint16)
    wide[:-1] = raw
    wide[:-1] |= wide[1:] << np.uint16(8)
    at = np.arange(count, dtype=np.int64) * bits + first
    shifted = np.right_shift(wide[at >> 3], (at & 7).astype(np.uint16))
    codes: NDArray[np.uint8] = (shifted & np.uint16((1 << bits) - 1)).astype(np.uint8)
    return codes
