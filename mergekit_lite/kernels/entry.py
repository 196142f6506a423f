"""One entry at a time: what chains that are written out for a row (`chain`) are made of.

Each function is the twin of a loop in `codec`, `steps` or `combine`, for use in registers.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mergekit_lite.kernels._jit import inlined, reported
from mergekit_lite.kernels.codec import BF16, F16, F32, F64
from mergekit_lite.kernels.steps import MAGNITUDE, mixed

LOADS: Final = {BF16: "from_bf16", F16: "from_f16", F32: "from_f32", F64: "from_f64"}
STORES: Final = {BF16: "to_bf16", F16: "to_f16", F32: "to_f32", F64: "to_f64"}
STORED: Final = {BF16: "uint16", F16: "uint16", F32: "float32", F64: "float64"}
"""The numpy type that a kernel sees stored entries as."""

ZERO = np.float32(0.0)
ONE = np.float32(1.0)
_HALF_BIAS = np.float32(2.0**112)  # moves an fp16 exponent to fp32's bias, subnormals and all
_HALF_DENORMAL = np.float32(0.5)


@inlined
def magnitude(x: np.float32) -> np.uint32:
    """Return the bits of |x|, which are ordered as the magnitudes are."""
    return np.uint32(np.float32(x).view(np.uint32) & MAGNITUDE)


@inlined
def from_bf16(h: np.uint16) -> np.float32:
    """Return a stored bf16 entry."""
    return np.uint32(np.uint32(h) << np.uint32(16)).view(np.float32)


@inlined
def from_f16(h: np.uint16) -> np.float32:
    """Return a stored fp16 entry."""
    shifted = np.uint32(np.uint32(h & np.uint16(0x7FFF)) << np.uint32(13)).view(np.float32)
    whole = np.float32(shifted * _HALF_BIAS).view(np.uint32)
    sign = np.uint32(np.uint32(h & np.uint16(0x8000)) << np.uint32(16))
    exponent = np.uint16(h & np.uint16(0x7C00))
    special = np.uint32(0x7F800000) if exponent == np.uint16(0x7C00) else np.uint32(0)
    return np.uint32(whole | sign | special).view(np.float32)


@inlined
def from_f32(x: np.float32) -> np.float32:
    """Return a stored fp32 entry."""
    return x


@inlined
def from_f64(x: np.float64) -> np.float32:
    """Return a stored fp64 entry, rounded."""
    return np.float32(x)


@inlined
def to_bf16(x: np.float32) -> np.uint16:
    """Round to nearest even."""
    b = np.float32(x).view(np.uint32)
    rounded = np.uint32(b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1)))
    nan = np.uint32(b & MAGNITUDE) > np.uint32(0x7F800000)
    return np.uint16(0x7FC0) if nan else np.uint16(rounded >> np.uint32(16))


@inlined
def to_f16(x: np.float32) -> np.uint16:
    """Round to nearest even; all three ranges are computed, so that loops have no branches."""
    b = np.uint32(magnitude(x))
    sign = np.uint16((np.float32(x).view(np.uint32) >> np.uint32(16)) & np.uint32(0x8000))
    odd = np.uint32((b >> np.uint32(13)) & np.uint32(1))
    normal = np.uint32(np.uint32(b + np.uint32(0xC8000FFF) + odd) >> np.uint32(13))
    shifted = np.float32(b.view(np.float32) + _HALF_DENORMAL).view(np.uint32)
    small = np.uint32(shifted - np.uint32(0x3F000000))
    large = np.uint32(0x7E00) if b > np.uint32(0x7F800000) else np.uint32(0x7C00)
    h = small if b < np.uint32(0x38800000) else normal
    h = large if b >= np.uint32(0x47800000) else h
    return np.uint16(np.uint16(h) | sign)


@inlined
def to_f32(x: np.float32) -> np.float32:
    """Return an entry to be stored as fp32."""
    return x


@inlined
def to_f64(x: np.float32) -> np.float64:
    """Return an entry to be stored as fp64."""
    return np.float64(x)


@inlined
def limit_of(threshold: int, until: int, at: int) -> np.uint32:
    """Return the least magnitude kept at flat index `at` by a cut (threshold, until)."""
    return np.uint32(threshold if at < until else threshold + 1)


@inlined
def cut(x: np.float32, low: np.uint32) -> np.float32:
    """Zero what is below a limit."""
    return x if magnitude(x) >= low else ZERO


@inlined
def band(x: np.float32, high: np.uint32, low: np.uint32) -> np.float32:
    """Zero what reaches the upper limit, and what is below the lower one."""
    m = magnitude(x)
    return x if (m < high) & (m >= low) else ZERO


@inlined
def number_of(bits: int) -> np.float32:
    """Return the fp32 number with these bits."""
    return np.uint32(bits).view(np.float32)


@inlined
def far(x: np.float32, mean: np.float32, limit: np.float32) -> np.float32:
    """Zero what is not farther than `limit` from `mean`."""
    return x if abs(np.float32(x - mean)) > limit else ZERO


@inlined
def drop(
    x: np.float32, counter: np.uint32, salt: np.uint32, limit: np.uint32, factor: np.float32
) -> np.float32:
    """Zero what draws a number of at least `limit`, and multiply the rest by `factor`."""
    draw = mixed(np.uint32(mixed(counter) ^ salt))
    return x * factor if draw < limit else ZERO


@reported
def plus_square(total: np.float32, x: np.float32) -> np.float32:
    """Return `total + x * x`, for reports: its last digits depend on the CPU."""
    return np.float32(total + x * x)


@inlined
def sign_of(p: np.float32) -> np.float32:
    """Return 1, -1, or 0 for zero and NaN."""
    plus = ONE if p > ZERO else ZERO
    minus = ONE if p < ZERO else ZERO
    return np.float32(plus - minus)


@inlined
def elected(ballot: np.float32, tie: np.float32) -> np.float32:
    """Return the sign that a vote elects: `tie` where it is even, 0 where it is NaN."""
    sign = tie if ballot == ZERO else ZERO
    sign = np.float32(-1.0) if ballot < ZERO else sign
    return ONE if ballot > ZERO else sign


@inlined
def larger(best: np.float32, p: np.float32, agrees: bool) -> np.float32:
    """Return the one of larger magnitude, the first of equal ones; `p` counts if it agrees."""
    agreeing = p if agrees else ZERO
    return agreeing if abs(agreeing) > abs(best) else best


@inlined
def later(best: np.float32, p: np.float32) -> np.float32:
    """Return the one of larger magnitude, the second of equal ones."""
    return p if abs(p) >= abs(best) else best


@inlined
def claim(p: np.float32, total: np.float32, limit: np.float32) -> np.float32:
    """Return 1 where a part of a total outweighs `limit` times the rest, else 0."""
    return ONE if abs(p) > abs(np.float32(total - p)) * limit else ZERO


@inlined
def clip(x: np.float32, limit: np.float32) -> np.float32:
    """Return an entry cut off at -limit and limit."""
    high = limit if x > limit else x
    return np.float32(-limit) if high < -limit else high


@inlined
def mean(total: np.float32, mass: np.float32) -> np.float32:
    """Return total / mass, and 0 where no input agrees."""
    quotient = np.float32(total / (mass if mass != ZERO else ONE))
    return quotient if mass != ZERO else ZERO


@inlined
def added(base: np.float32, y: np.float32) -> np.float32:
    """Return base + y; where nothing changes, -0.0 stays what it is."""
    return base if y == ZERO else np.float32(base + y)
