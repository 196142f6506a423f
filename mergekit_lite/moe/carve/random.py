"""Any neurons go together: what other ways of splitting are compared with."""

from __future__ import annotations

from mergekit_lite.moe.carve._layer import Layer, Shares, Split
from mergekit_lite.moe.carve.contiguous import dealt
from mergekit_lite.ops._random import host_draws


def random(layer: Layer, shares: Shares) -> Split:
    """Deal out the neurons in a random order, as LLaMA-MoE does before its training."""
    import numpy as np

    drawn = host_draws(np.arange(layer.neurons, dtype=np.int64), layer.key)
    return dealt(np.argsort(drawn, kind="stable"), shares)
