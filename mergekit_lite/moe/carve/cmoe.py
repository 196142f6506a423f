"""Neurons that fire for the same tokens go together (CMoE, arXiv 2502.04416)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lite.moe.carve._firing import firing_neurons
from mergekit_lite.moe.carve._layer import Layer, Shares, Split
from mergekit_lite.moe.carve.balanced import assign

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.moe.carve._layer import Neurons


def cmoe(layer: Layer, shares: Shares) -> Split:
    """Share the neurons that fire most often; cluster the others by the tokens they fire for.

    Inputs and rows of gate and up are taken at norm 1. Clusters begin at the neurons that fire most
    often of those left; one balanced assignment by the L1 distance of who fires when, as the
    authors' code does.
    """
    import numpy as np

    firing = firing_neurons(layer)
    rates = np.bincount(firing.ravel(), minlength=layer.neurons)
    order = np.argsort(-rates, kind="stable")
    shared, others = np.sort(order[: shares.shared]), np.sort(order[shares.shared :])
    centres = order[shares.shared : shares.shared + len(shares.routed)]
    together = _together(firing, centres, layer.neurons)
    # The distance of two sets: what is in one alone, and what is in the other alone.
    costs = rates[:, None] + rates[centres][None] - 2.0 * together
    labels = assign(costs[others], shares.routed)
    return Split(shared, tuple(others[labels == i] for i in range(len(shares.routed))))


def _together(firing: Neurons, centres: Neurons, neurons: int) -> NDArray[np.float64]:
    """Return for how many tokens each neuron fires together with each centre."""
    import numpy as np

    found = np.zeros((neurons, len(centres)))
    for number, centre in enumerate(centres):
        tokens = (firing == centre).any(1)
        found[:, number] = np.bincount(firing[tokens].ravel(), minlength=neurons)
    return found
