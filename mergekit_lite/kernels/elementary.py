"""Exponential and logarithm in fp64 from sums and products: twins of `ops._elementary`.

Every step is one IEEE operation, so a vector, a single entry and a GPU give the same bits.
"""

from __future__ import annotations

from math import factorial

import numpy as np

from mergekit_lite.kernels._jit import inlined

_LEAST = -708.0  # below it the exponential would be subnormal
_LOG2_E = 1.4426950408889634
# The upper 32 bits of log 2, which times a small whole number are exact, and the rest of it.
_UPPER = float.fromhex("0x1.62e42feep-1")
_LOWER = float.fromhex("0x1.a39ef35793c76p-33")
_ROUNDING = 1.5 * 2.0**52  # added and taken away again it leaves the nearest whole number
_WHOLE = 2.0**52 + 1023
_E0, _E1, _E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11, _E12, _E13 = (
    1.0 / factorial(n) for n in range(14)
)
_L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9, _L10 = (1.0 / (2 * n + 1) for n in range(1, 11))
_SHIFT = np.int64(52)
_BIAS = np.int64(1023)
_SCALE = np.int64(0x4338000000000000 - 1023)
_ROUNDED_UP = np.int64(0x3FF0000000000000 - 0x3FE6A09E667F3BCD)  # bits of 1 and of the root of 1/2
_WHOLE_BITS = np.int64(0x4330000000000000)


@inlined
def exponential(x: float) -> float:
    """Return e to the power of x, for x of at most 0; below -708 that of -708."""
    x = _LEAST if x < _LEAST else x
    rounded = np.float64(x * _LOG2_E + _ROUNDING)
    power = rounded - _ROUNDING
    r = (x - power * _UPPER) - power * _LOWER
    p = _E13
    p = p * r + _E12
    p = p * r + _E11
    p = p * r + _E10
    p = p * r + _E9
    p = p * r + _E8
    p = p * r + _E7
    p = p * r + _E6
    p = p * r + _E5
    p = p * r + _E4
    p = p * r + _E3
    p = p * r + _E2
    p = p * r + _E1
    p = p * r + _E0
    scale = np.int64((rounded.view(np.int64) - _SCALE) << _SHIFT)
    return p * scale.view(np.float64)


@inlined
def logarithm(y: float) -> float:
    """Return the natural logarithm of a positive, normal number."""
    bits = np.float64(y).view(np.int64)
    exponent = np.int64((bits + _ROUNDED_UP) >> _SHIFT)
    power = np.int64(exponent | _WHOLE_BITS).view(np.float64) - _WHOLE
    f = np.int64(bits - ((exponent - _BIAS) << _SHIFT)).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = _L10
    p = p * z + _L9
    p = p * z + _L8
    p = p * z + _L7
    p = p * z + _L6
    p = p * z + _L5
    p = p * z + _L4
    p = p * z + _L3
    p = p * z + _L2
    p = p * z + _L1
    p = p * z
    twice = s + s
    return power * _UPPER + (twice + (twice * p + power * _LOWER))
