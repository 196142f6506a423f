"""Neurons that matter for the same tokens go together: LLaMA-MoE's split (arXiv 2406.16554)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lite.moe.carve._layer import CHUNK, Layer, Shares, Split, normalised
from mergekit_lite.moe.carve.balanced import assign
from mergekit_lite.ops._random import host_draws

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.carve._layer import Floats, Neurons

ROUNDS = 10


def gradient(layer: Layer, shares: Shares) -> Split:
    """Give each group of tokens the neurons that its loss depends on most.

    A neuron matters to a token by |h dL/dh|: how far the loss would change, to first order, without
    what the neuron says. Tokens are put in as many groups as there are routed slices, by what the
    layer is shown of them; each group counts the same. Shared are the neurons that matter most to
    all groups together; of the others each slice gets its group's, as much as all slices can have
    at once.
    """
    import numpy as np

    groups = len(shares.routed)
    found = layer.importance(token_groups(layer.seen(), groups, layer.key), groups)
    parts = found / np.maximum(found.sum(1, keepdims=True), 1e-300)
    order = np.argsort(-parts.sum(0), kind="stable")
    shared, others = np.sort(order[: shares.shared]), np.sort(order[shares.shared :])
    labels = assign(-parts[:, others].T, shares.routed)
    return Split(shared, tuple(others[labels == i] for i in range(groups)))


def token_groups(inputs: Floats, groups: int, key: int) -> Neurons:
    """Return the group of each token: clusters of directions about the mean of all.

    Args:
        inputs: (tokens, d).
        groups: how many.
        key: that the tokens are drawn with at which clusters begin; at most 10 rounds.
    """
    import numpy as np

    mean = inputs.mean(0, dtype=np.float64).astype(np.float32)
    drawn = host_draws(np.arange(len(inputs), dtype=np.int64), key)
    starts = np.argsort(drawn, kind="stable")[np.arange(groups) % len(inputs)]
    centres = normalised(inputs[starts] - mean)
    labels: NDArray[np.int64] = np.full(len(inputs), -1)
    for _ in range(ROUNDS):
        sums = np.zeros(centres.shape)
        before, labels = labels, np.empty_like(labels)
        for first in range(0, len(inputs), CHUNK):
            rows = normalised(inputs[first : first + CHUNK] - mean)
            own = (rows @ centres.T).argmax(1)
            labels[first : first + CHUNK] = own
            np.add.at(sums, own, rows)
        if (labels == before).all():
            break
        centres = normalised(sums.astype(np.float32))
    return labels
