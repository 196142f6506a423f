"""The mean direction of what routers are shown of each expert's texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lite.moe.gates._annotations import (
    Confidence,
    Labels,
    Length,
    Spread,
    Through,
    Tokens,
)
from mergekit_lite.moe.gates._measure import Reading, topics_of
from mergekit_lite.moe.gates._scale import Scale, pooled_gram
from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.gates._measure import Array


def mean_rows(unit: Array) -> Array:
    """Return sums of inputs at norm 1 as rows of norm 1."""
    import numpy as np

    rows: Array = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-30)
    return rows


@gate(title="Mean router input", needs="texts")
def router_input_mean(
    request: GateRequest,
    *,
    spread: Spread = None,
    confidence: Confidence = None,
    through: Through = "base",
    labels: Labels = "expert",
    tokens: Tokens = 16384,
    length: Length = 512,
) -> Gates:
    """Point each row where the expert's texts lie, in the space that routers see.

    A row is the mean of x / |x| over the router inputs x of the expert's texts, padding left out,
    at norm 1; all rows are then scaled together. What all texts have in common is in every row:
    where that outweighs the rest, `ridge` does better. Without a bias it cannot be subtracted.
    """
    topics = topics_of(request.experts, request.texts)
    scale = Scale.wanted(spread, confidence, request.per_token)
    rows: dict[int, NDArray[np.float32]] = {}
    reading = Reading(length, tokens, through, labels, scale.sample)
    passed = request.measured().sums(topics, reading)
    for layer, sums in passed.layers:
        if layer in request.routers:
            found = scale.of(mean_rows(sums.unit), pooled_gram(sums.gram, sums.count), sums)
            rows[layer] = found.astype("float32")
    return Gates(rows, {**passed.facts, **scale.facts()})
