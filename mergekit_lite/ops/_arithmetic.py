"""The few fp32 operations that all combines share, in the one order that fixes their bits."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEGLIGIBLE = 1e-8
"""A sum of weights smaller than this cannot be divided by."""


def single(value: float) -> float:
    """Return `value` rounded to the nearest fp32 number, which is infinite beyond the largest."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def total_weight(weights: Sequence[float]) -> float:
    """Return the sum of weights: each rounded to fp32, added one after the other in fp32.

    Order of operations: total = w0; total = single(total + w1); ...
    """
    total = single(weights[0])
    for weight in weights[1:]:
        # Adding two fp32 numbers in fp64 and rounding once is exactly the fp32 sum.
        total = single(total + single(weight))
    return total


def weighted_sum(inputs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum of inputs times weights in fp32.

    Order of operations: acc = w0*x0; acc = acc + w1*x1; ... with each product rounded to fp32
    before it is added (no fused multiply-add) and each weight rounded to fp32 first.
    """
    total = inputs[0].float() * single(weights[0])
    for tensor, weight in zip(inputs[1:], weights[1:], strict=True):
        total += tensor.float() * single(weight)
    return total


def divide(numerator: Tensor, divisor: float) -> Tensor:
    """Return `numerator / divisor`, rounded once."""
    # A Python number as divisor would be turned into a reciprocal on CUDA: other bits.
    return numerator / numerator.new_full((), divisor)


def negligible(weights: Sequence[float]) -> list[str]:
    """Return the problem of weights that cannot be normalised, if they have it."""
    if not weights or abs(total_weight(weights)) >= NEGLIGIBLE:
        return []
    return ["the weights sum to 0, so they cannot be normalised; set `normalize: false`"]
