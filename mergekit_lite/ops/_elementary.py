"""Exponential and logarithm in fp64 that give the same bits on every device.

Libraries differ in the last digit, and none of them in a sum or a product: so both are polynomials
here, to within two units of the last digit, step after step as `kernels.elementary` has them.
"""

from __future__ import annotations

from math import factorial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EXPONENTIAL = tuple(1.0 / factorial(n) for n in range(14))
"""Of e^r for |r| of at most half of log 2, from the constant on."""
LOGARITHM = tuple(1.0 / (2 * n + 1) for n in range(1, 11))
"""Of log((1+s)/(1-s)) / 2s - 1 in s^2, from the square on."""

LEAST = -708.0
"""Below it the exponential would be subnormal."""
LOG2_E = 1.4426950408889634
UPPER = float.fromhex("0x1.62e42feep-1")
"""The upper 32 bits of log 2: times a whole number of at most 21 bits it is exact."""
LOWER = float.fromhex("0x1.a39ef35793c76p-33")
"""The rest of log 2."""

BIAS = 1023
ROUNDING = 1.5 * 2.0**52
"""Added to a number and taken away again it leaves the nearest whole number."""
ROUNDING_BITS = 0x4338000000000000
WHOLE = 2.0**52 + BIAS
WHOLE_BITS = 0x4330000000000000
"""Bits of 2^52, whose last digits are a whole number."""
ONE_BITS = 0x3FF0000000000000
ROOT_HALF_BITS = 0x3FE6A09E667F3BCD


def exponential_(x: Tensor) -> Tensor:
    """Replace fp64 entries of at most 0 by e to their power; below -708 by that of -708."""
    import torch

    x.clamp_(min=LEAST)
    rounded = (x * LOG2_E).add_(ROUNDING)
    power = rounded - ROUNDING
    x -= power * UPPER
    x -= power.mul_(LOWER)
    p = torch.full_like(x, EXPONENTIAL[-1])
    for coefficient in reversed(EXPONENTIAL[:-1]):
        p.mul_(x).add_(coefficient)
    scale = (rounded.view(torch.int64) - (ROUNDING_BITS - BIAS)) << 52
    return x.copy_(p.mul_(scale.view(torch.float64)))


def logarithm_(y: Tensor) -> Tensor:
    """Replace positive, normal fp64 entries by their natural logarithms."""
    import torch

    bits = y.view(torch.int64)
    exponent = (bits + (ONE_BITS - ROOT_HALF_BITS)) >> 52
    power = (exponent | WHOLE_BITS).view(torch.float64) - WHOLE
    f = (bits - ((exponent - BIAS) << 52)).view(torch.float64) - 1.0
    s = f / (f + 2.0)
    z = s.square()
    p = torch.full_like(z, LOGARITHM[-1])
    for coefficient in reversed(LOGARITHM[:-1]):
        p.mul_(z).add_(coefficient)
    p.mul_(z)
    s += s
    p.mul_(s).add_(power * LOWER).add_(s)
    return y.copy_(p.add_(power.mul_(UPPER)))
