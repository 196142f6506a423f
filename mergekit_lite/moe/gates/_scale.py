"""How strongly rows tell experts apart: the scale of logits on the texts they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergekit_lite.moe.gates._measure import Array, LayerSums

SAMPLE = 4096
"""Inputs of a layer that tell how sure its router is."""
_HALVINGS = 60


@dataclass(frozen=True)
class Scale:
    """The scale that rows are to have.

    Attributes:
        spread: standard deviation of logits over tokens and experts, about each token's mean.
        confidence: in place of it, the mean over tokens of the largest weight that the softmax of
            their logits gives to an expert.
    """

    spread: float
    confidence: float | None = None

    @classmethod
    def wanted(cls, spread: float | None, confidence: float | None, per_token: int) -> Scale:
        """Return the scale that a recipe asks for, by default that of `usual_spread`."""
        return cls(usual_spread(per_token) if spread is None else spread, confidence)

    @property
    def sample(self) -> int:
        """How many inputs of a layer it needs to see."""
        return 0 if self.confidence is None else SAMPLE

    def of(self, rows: Array, pooled: Array, sums: LayerSums) -> Array:
        """Return rows at this scale; those that do not tell tokens apart at all stay as they are.

        Args:
            rows: (experts, d).
            pooled: (d, d) mean of x x^T over tokens.
            sums: of the layer, with a sample of its inputs where there is a confidence.
        """
        if self.confidence is None or sums.sample is None:
            return scaled(rows, pooled, self.spread)
        return confident(rows, sums.sample, self.confidence)

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        if self.confidence is None:
            return {"spread": self.spread}
        return {"confidence": self.confidence}


def spread(rows: Array, pooled: Array) -> float:
    """Return the standard deviation of logits over tokens and experts, about each token's mean.

    A router's choice and weights do not change when all of a token's logits move together, so
    that part is left out.

    Args:
        rows: (experts, d).
        pooled: (d, d) mean of x x^T over tokens.
    """
    import numpy as np

    apart = rows - rows.mean(0)
    return float(np.sqrt(max(np.einsum("nd,de,ne->", apart, pooled, apart) / len(rows), 0.0)))


def usual_spread(per_token: int) -> float:
    """Return the spread that rows get by default: 1, or 4 where a token passes one expert."""
    return 4.0 if per_token == 1 else 1.0


def scaled(rows: Array, pooled: Array, wanted: float) -> Array:
    """Return rows at a scale at which their logits have the spread that is wanted.

    Rows that do not tell tokens apart at all stay as they are.
    """
    found = spread(rows, pooled)
    return rows * (wanted / found) if found > 0 else rows


def confident(rows: Array, inputs: Array, wanted: float) -> Array:
    """Return rows at a scale at which the largest weights of tokens are in the mean as wanted.

    The mean grows with the scale, from 1 / experts to 1, so the scale is found by halving an
    interval. Where no scale reaches it, because rows are alike for some tokens, the largest of the
    interval is taken.

    Args:
        rows: (experts, d).
        inputs: (tokens, d).
        wanted: above 1 / experts, below 1.
    """
    import numpy as np

    logits = inputs @ (rows - rows.mean(0)).T
    logits -= logits.max(1, keepdims=True)
    deviation = float(np.std(logits))
    if deviation == 0:
        return rows
    low, high = 1e-6 / deviation, 1e6 / deviation
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        sure = float(np.mean(1 / np.exp(middle * logits).sum(1)))
        low, high = (middle, high) if sure < wanted else (low, middle)
    return rows * high


def pooled_gram(grams: Array, counts: Array) -> Array:
    """Return the mean of x x^T over tokens, each topic counting alike."""
    mean: Array = (grams / counts[:, None, None]).mean(0)
    return mean
