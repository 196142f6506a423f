"""Numbers rounded to evenly spaced levels, one of which is zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.compress._types import Floats

_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Levels:
    """What codes stand for: `(code - zero) * scale`.

    Attributes:
        codes: of each number.
        scale: distance of two levels, fp32.
        zero: the code of zero.
    """

    codes: NDArray[np.uint8]
    scale: float
    zero: int


def rounded(values: Floats, bits: int) -> Levels:
    """Return numbers rounded to `2 ** bits` levels between the least and the largest of them.

    The range is widened to hold zero, and its levels shifted so that zero is one of them.
    """
    top = (1 << bits) - 1
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = np.float32(max((high - low) / top, _LEAST))
    zero = int(np.rint(-low / float(scale)))
    codes = np.clip(np.rint(values / scale) + np.float32(zero), 0, top).astype(np.uint8)
    return Levels(codes, float(scale), zero)
