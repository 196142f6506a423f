"""A sum of any number of fp64 terms, rounded once, whatever their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LEAST = 1126
"""Every finite fp64 number is a whole number times 2 to the power of minus this."""


class ExactSum:
    """Adds fp64 numbers as whole numbers, so that no order and no thread changes the sum.

    `math.fsum` gives the same, but must have all terms at once.
    """

    def __init__(self) -> None:
        self._whole = 0
        self._odd = 0.0  # what is not finite cannot be a whole number

    def add(self, terms: Sequence[float]) -> None:
        """Take in terms; the caller sees to it that threads take turns."""
        values = np.asarray(terms, np.float64)
        finite = values[np.isfinite(values)]
        if len(finite) < len(values):
            self._odd += float(values[~np.isfinite(values)].sum())
        fractions, exponents = np.frexp(finite)
        digits = (fractions * 2.0**53).astype(np.int64)
        for exponent in np.unique(exponents):
            alike = digits[exponents == exponent]
            # In halves, as a thousand such numbers do not fit 64 bits together.
            high, low = int((alike >> 32).sum()), int((alike & 0xFFFFFFFF).sum())
            self._whole += ((high << 32) + low) << (int(exponent) - 53 + _LEAST)

    def total(self) -> float:
        """Return the sum."""
        # Python divides whole numbers exactly and rounds once.
        return self._odd if self._odd != 0 else self._whole / (1 << _LEAST)
