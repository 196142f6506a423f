"""Neighbouring neurons go together."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from mergekit_lite.moe.carve._layer import Layer, Shares, Split

if TYPE_CHECKING:
    from mergekit_lite.moe.carve._layer import Neurons


def contiguous(layer: Layer, shares: Shares) -> Split:
    """Cut the layer as it lies, the shared expert first."""
    import numpy as np

    return dealt(np.arange(layer.neurons), shares)


def dealt(neurons: Neurons, shares: Shares) -> Split:
    """Deal out neurons in this order."""
    import numpy as np

    parts = np.split(neurons, list(accumulate((shares.shared, *shares.routed[:-1]))))
    return Split(parts[0], tuple(parts[1:]))
