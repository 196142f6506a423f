"""Neurons with alike gates go together (MoEfication, arXiv 2110.01786)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergekit_lite.moe.carve._layer import Layer, Shares, Split, normalised
from mergekit_lite.moe.carve.balanced import assign
from mergekit_lite.ops._random import host_draws

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.carve._layer import Floats

ROUNDS = 10


def kmeans(layer: Layer, shares: Shares) -> Split:
    """Cluster the rows of the gate at norm 1 into groups of equal size.

    Shared are the neurons whose three norms have the largest product. Clusters begin at rows drawn
    at random; at most 10 rounds. Models whose activations are silu are less sparse than those that
    the paper is about.
    """
    import numpy as np

    norms = np.linalg.norm(layer.gate, axis=1) * np.linalg.norm(layer.up, axis=1)
    norms = norms * np.linalg.norm(layer.down, axis=0)
    order = np.argsort(-norms, kind="stable")
    shared, others = np.sort(order[: shares.shared]), np.sort(order[shares.shared :])
    labels = _clustered(normalised(layer.gate[others]), shares.routed, layer.key)
    return Split(shared, tuple(others[labels == i] for i in range(len(shares.routed))))


def _clustered(rows: Floats, sizes: Sequence[int], key: int) -> NDArray[np.int64]:
    import numpy as np

    drawn = host_draws(np.arange(len(rows), dtype=np.int64), key)
    centres = rows[np.argsort(drawn, kind="stable")[: len(sizes)]].astype(np.float64)
    labels = np.full(len(rows), -1)
    for _ in range(ROUNDS):
        # The squared distance without what is the same for all clusters.
        costs = np.square(centres).sum(1) - 2 * (rows @ centres.T)
        found = assign(costs, sizes)
        if (found == labels).all():
            break
        labels = found
        centres = np.stack([rows[labels == i].mean(0, np.float64) for i in range(len(sizes))])
    return labels
