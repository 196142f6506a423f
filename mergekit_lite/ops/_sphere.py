"""Directions and lengths of vectors, from their inner products alone.

A mean on a sphere lies in the span of its vectors, so it is a sum of them with factors that follow
from their inner products: no op on spheres has to hold whole tensors. All in fp64 here; factors
are rounded to fp32 once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

COLINEAR = 1.0 - 1e-12
"""Cosine from which on two directions count as one, or as opposite."""

Matrix = Sequence[Sequence[float]]


def lengths(gram: Matrix) -> list[float]:
    """Return the length of each vector."""
    return [math.sqrt(max(gram[i][i], 0.0)) for i in range(len(gram))]


def cosines(gram: Matrix) -> list[list[float]]:
    """Return the cosines between all pairs, 0 for vectors without length and 1 on the diagonal."""
    size = lengths(gram)
    count = range(len(size))
    return [
        [
            1.0
            if i == j
            else _bounded(gram[i][j] / size[i] / size[j])
            if size[i] * size[j]
            else 0.0
            for j in count
        ]
        for i in count
    ]


def _bounded(cosine: float) -> float:
    return min(1.0, max(-1.0, cosine))


def arc(t: float, cosine: float) -> tuple[float, float]:
    """Return the factors of two vectors at position `t` of the arc between them.

    Those of a line where the cosine is so near to 1 or -1 that the arc has no direction.
    """
    if not abs(cosine) <= COLINEAR:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def inner(left: Sequence[float], matrix: Matrix, right: Sequence[float]) -> float:
    """Return the inner product of two sums of vectors, given by their factors."""
    rows = (math.fsum(m * r for m, r in zip(row, right, strict=True)) for row in matrix)
    return math.fsum(a * row for a, row in zip(left, rows, strict=True))


def shares(weights: Sequence[float]) -> list[float]:
    """Return the weights divided by their sum."""
    total = math.fsum(weights)
    return [weight / total for weight in weights]
