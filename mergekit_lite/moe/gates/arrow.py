"""The direction that an expert's change reacts to most, its sign taken from its texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mergekit_lite.moe.gates._annotations import Confidence, Length, Spread, Tokens
from mergekit_lite.moe.gates._measure import Reading, topics_of
from mergekit_lite.moe.gates._scale import Scale, pooled_gram
from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate
from mergekit_lite.ops._parameters import Doc, Range

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.gates._measure import Array


def prototype(change: Array, rounds: int = 15) -> Array:
    """Return the input direction that a change of a matrix (rows x d) amplifies most, at norm 1.

    By power iteration on change^T change from the row sums of its squares, which no seed changes.
    """
    import numpy as np

    found = np.sqrt(np.square(change).sum(0))
    for _ in range(rounds):
        norm = float(np.linalg.norm(found))
        if norm == 0:
            break
        found = change.T @ (change @ (found / norm))
    direction: Array = found / max(float(np.linalg.norm(found)), 1e-30)
    return direction


@gate(title="Arrow", needs="texts")
def arrow(
    request: GateRequest,
    *,
    rounds: Annotated[int, Range(at_least=1), Doc("rounds of power iteration")] = 15,
    spread: Spread = None,
    confidence: Confidence = None,
    tokens: Tokens = 16384,
    length: Length = 512,
) -> Gates:
    """Point each row along what the expert's change of its gate and up projections reacts to most.

    The top right singular vector of the change (Arrow takes the absolute value of its product with
    a token, which no linear router can; here its sign is the one that the expert's own texts have
    in the mean). All rows are then scaled together.
    """
    import numpy as np

    measure = request.measured()
    topics = topics_of(request.experts, request.texts)
    scale = Scale.wanted(spread, confidence, request.per_token)
    rows: dict[int, NDArray[np.float32]] = {}
    passed = measure.sums(topics, Reading(length, tokens, sample=scale.sample))
    for layer, sums in passed.layers:
        if layer not in request.routers:
            continue
        found = np.stack([prototype(measure.change(t.expert, layer), rounds) for t in topics])
        signs = np.where((found * sums.total).sum(1) < 0, -1.0, 1.0)
        found = scale.of(found * signs[:, None], pooled_gram(sums.gram, sums.count), sums)
        rows[layer] = found.astype(np.float32)
    return Gates(rows, {**passed.facts, **scale.facts()})
