"""Storage dtypes to fp32 and back, a block at a time, bit for bit as torch does it."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels._jit import inlined

BF16: Final = 0
F16: Final = 1
F32: Final = 2
F64: Final = 3
CODES: Final = {"BF16": BF16, "F16": F16, "F32": F32, "F64": F64}
WIDTHS: Final = {BF16: 2, F16: 2, F32: 4, F64: 8}

# Multiplying by 2**112 moves an fp16 exponent to fp32's bias and normalises subnormals for free.
_HALF_BIAS = np.float32(2.0**112)
_HALF_DENORMAL = np.float32(0.5)


# The smallest fp32 magnitude that each dtype rounds to infinity.
LARGEST = np.array([0x7F7F8000, 0x477FF000, 0x7F800000, 0x7F800000], np.int64)


@inlined
def non_finite(bits: NDArray[np.uint32], n: int, smallest: int) -> int:
    """Return how many magnitudes reach `smallest`; the common case is one running maximum."""
    limit = np.uint32(smallest)
    largest = np.uint32(0)
    for i in range(n):
        largest = max(largest, np.uint32(bits[i] & np.uint32(0x7FFFFFFF)))
    count = 0
    if largest >= limit:
        for i in range(n):
            count += 1 if (bits[i] & np.uint32(0x7FFFFFFF)) >= limit else 0
    return count


@inlined
def decode(raw: NDArray[np.uint8], at: int, code: int, out: NDArray[np.float32], n: int) -> int:
    """Write entries `at` bytes into `raw` to `out[:n]` as fp32; return how many are not finite."""
    bits = out.view(np.uint32)
    if code == BF16:
        half = raw[at : at + 2 * n].view(np.uint16)
        for i in range(n):
            bits[i] = np.uint32(np.uint32(half[i]) << np.uint32(16))
    elif code == F16:
        half = raw[at : at + 2 * n].view(np.uint16)
        for i in range(n):
            bits[i] = np.uint32(np.uint32(half[i] & 0x7FFF) << np.uint32(13))
        for i in range(n):
            out[i] = out[i] * _HALF_BIAS
        for i in range(n):
            sign = np.uint32(np.uint32(half[i] & 0x8000) << np.uint32(16))
            special = np.uint32(0x7F800000) if (half[i] & 0x7C00) == 0x7C00 else np.uint32(0)
            bits[i] = np.uint32(bits[i] | sign | special)
    elif code == F32:
        whole = raw[at : at + 4 * n].view(np.float32)
        for i in range(n):
            out[i] = whole[i]
    else:
        wide = raw[at : at + 8 * n].view(np.float64)
        for i in range(n):
            out[i] = np.float32(wide[i])
    return int(non_finite(bits, n, LARGEST[F32]))


@inlined
def encode(values: NDArray[np.float32], n: int, out: NDArray[np.uint8], at: int, code: int) -> int:
    """Round `values[:n]` to nearest even into `out` from byte `at`; return the non-finite ones."""
    bits = values.view(np.uint32)
    if code == BF16:
        half = out[at : at + 2 * n].view(np.uint16)
        for i in range(n):
            b = bits[i]
            rounded = np.uint32(b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1)))
            nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            half[i] = np.uint16(0x7FC0) if nan else np.uint16(rounded >> np.uint32(16))
    elif code == F16:
        half = out[at : at + 2 * n].view(np.uint16)
        for i in range(n):
            b = np.uint32(bits[i] & np.uint32(0x7FFFFFFF))
            sign = np.uint16((bits[i] >> np.uint32(16)) & np.uint32(0x8000))
            if b >= np.uint32(0x47800000):
                h = np.uint16(0x7E00) if b > np.uint32(0x7F800000) else np.uint16(0x7C00)
            elif b < np.uint32(0x38800000):
                shifted = np.float32(b.view(np.float32) + _HALF_DENORMAL)
                h = np.uint16(shifted.view(np.uint32) - np.uint32(0x3F000000))
            else:
                odd = np.uint32((b >> np.uint32(13)) & np.uint32(1))
                h = np.uint16(np.uint32(b + np.uint32(0xC8000FFF) + odd) >> np.uint32(13))
            half[i] = h | sign
    elif code == F32:
        whole = out[at : at + 4 * n].view(np.uint32)
        for i in range(n):
            whole[i] = bits[i]
    else:
        wide = out[at : at + 8 * n].view(np.float64)
        for i in range(n):
            wide[i] = np.float64(values[i])
    return int(non_finite(bits, n, LARGEST[code]))


@inlined
def non_finite_stored(raw: NDArray[np.uint8], at: int, code: int, n: int) -> int:
    """Return how many of `n` stored entries from byte `at` on are not finite in fp32."""
    count = 0
    if code == BF16:
        half = raw[at : at + 2 * n].view(np.uint16)
        for i in range(n):
            count += 1 if (half[i] & 0x7F80) == 0x7F80 else 0
    elif code == F16:
        half = raw[at : at + 2 * n].view(np.uint16)
        for i in range(n):
            count += 1 if (half[i] & 0x7C00) == 0x7C00 else 0
    elif code == F32:
        whole = raw[at : at + 4 * n].view(np.float32)
        for i in range(n):
            count += 0 if np.isfinite(whole[i]) else 1
    else:
        wide = raw[at : at + 8 * n].view(np.float64)
        for i in range(n):
            count += 0 if np.isfinite(np.float32(wide[i])) else 1
    return count
