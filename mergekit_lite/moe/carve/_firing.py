"""Which neurons of a feed-forward layer fire for which tokens, as CMoE counts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lite.moe.carve._layer import Layer, chunks, normalised, silu

if TYPE_CHECKING:
    from mergekit_lite.moe.carve._layer import Neurons

FIRING = 10
"""Neurons of a token that count as firing: those whose activation is largest."""


def firing_neurons(layer: Layer) -> Neurons:
    """Return the neurons that fire for each token, (tokens, at most 10)."""
    import numpy as np

    gate, up = normalised(layer.gate).T, normalised(layer.up).T
    count = min(FIRING, layer.neurons)
    found = []
    for tokens in chunks(layer.seen()):
        rows = normalised(tokens)
        strength = np.abs(silu(rows @ gate) * (rows @ up))
        found.append(np.argpartition(-strength, count - 1, axis=1)[:, :count])
    return np.concatenate(found)
