"""How strongly rows tell experts apart: the scale of logits on the texts they were made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_lite.moe.gates._measure import Array


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


def pooled_gram(grams: Array, counts: Array) -> Array:
    """Return the mean of x x^T over tokens, each topic counting alike."""
    mean: Array = (grams / counts[:, None, None]).mean(0)
    return mean
