"""Neurons that fire together go together: MoEfication's graph (arXiv 2110.01786)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lite.moe.carve._layer import CHUNK, Layer, Shares, Split, chunks, silu
from mergekit_lite.moe.carve.partition import partition

if TYPE_CHECKING:
    from mergekit_lite.moe.carve._layer import Floats

FIRING = 10
"""One neuron in so many fires for a token: those whose activation is largest."""


def coactivation(layer: Layer, shares: Shares) -> Split:
    """Cut the graph of neurons that fire together into parts of equal size, along light edges.

    An edge weighs the sum over tokens of the product of both activations' sizes, where both fire.
    Activations of silu are hardly ever 0, as those of ReLU are that the paper is about, so the
    tenth of a token's neurons with the largest ones is what fires. Shared are the neurons with the
    most weight on their edges.
    """
    import numpy as np

    edges = together(layer)
    order = np.argsort(-(edges.sum(1) - edges.diagonal()), kind="stable")
    shared, others = np.sort(order[: shares.shared]), np.sort(order[shares.shared :])
    labels = partition(edges, others, shares.routed)
    return Split(shared, tuple(others[labels == i] for i in range(len(shares.routed))))


def together(layer: Layer) -> Floats:
    """Return the edges of the graph, (neurons, neurons), with each neuron's own sum of squares."""
    import numpy as np

    quiet = layer.neurons - max(1, layer.neurons // FIRING)
    edges = np.zeros((layer.neurons, layer.neurons), np.float32)
    for tokens in chunks(layer.seen()):
        sizes = np.abs(silu(tokens @ layer.gate.T) * (tokens @ layer.up.T))
        silent = np.argpartition(sizes, quiet, axis=1)[:, :quiet]
        np.put_along_axis(sizes, silent, 0.0, axis=1)
        for first in range(0, layer.neurons, CHUNK):
            edges[first : first + CHUNK] += sizes[:, first : first + CHUNK].T @ sizes
    return edges
