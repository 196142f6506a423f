"""The router of CMoE itself: a slice scores as strongly as its most typical neuron would fire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit_lite.moe.carve._firing import firing_neurons
from mergekit_lite.moe.carve._layer import Layer, Split, normalised, silu
from mergekit_lite.moe.carve.routers import agreement, contributions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.carve._layer import Floats, Neurons


@dataclass(frozen=True)
class ExactRows:
    """A router whose scores are |silu(gate x) * (up x)|.

    Attributes:
        gate, up: (slices, d) in fp32, of norm 1.
        neurons: (slices,) those that they are the rows of.
        agreement: part of the slices with the largest contributions that it chooses, on the texts.
    """

    gate: Floats
    up: Floats
    neurons: Neurons
    agreement: float


def exact_router(layer: Layer, split: Split, *, per_token: int) -> ExactRows:
    """Return the rows of the neurons that stand for the routed slices (arXiv 2502.04416).

    Of each slice it is the neuron whose firing, token by token, is nearest to the mean of the
    slice's, by the L1 distance; of equally near ones the first.

    Args:
        layer: that is carved; texts have been run.
        split: into these slices.
        per_token: slices that a token passes.
    """
    import numpy as np

    neurons = typical(firing_neurons(layer), split, layer.neurons)
    gate, up = normalised(layer.gate[neurons]), normalised(layer.up[neurons])
    inputs = layer.seen()
    scores = np.abs(silu(inputs @ gate.T) * (inputs @ up.T)).astype(np.float64)
    found = agreement(scores, contributions(layer, split), per_token)
    return ExactRows(gate, up, neurons, found)


def typical(firing: Neurons, split: Split, neurons: int) -> Neurons:
    """Return of each routed slice the neuron that fires most like the slice as a whole.

    Args:
        firing: (tokens, some) the neurons that fire for each token.
        split: the slices.
        neurons: of the layer.
    """
    import numpy as np

    rates = np.bincount(firing.ravel(), minlength=neurons).astype(np.float64)
    found = []
    for own in split.routed:
        part = np.zeros(neurons)
        part[own] = 1 / max(len(own), 1)
        centre = part[firing].sum(1)  # of each token, the part of the slice that fires
        # Marks are 0 or 1, so the distance is what tokens that fire lack of 1, and all others have.
        shared = np.zeros(neurons)
        np.add.at(shared, firing.ravel(), np.repeat(centre, firing.shape[1]))
        distance = rates[own] - 2 * shared[own] + centre.sum()
        found.append(own[int(np.argmin(distance))])
    chosen: NDArray[np.int64] = np.array(found, np.int64)
    return chosen
