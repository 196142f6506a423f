"""Which neuron of one expert stands for which of another.

The output of an expert does not depend on the order of its neurons, so two experts that compute the
same may have it in any. Before they are averaged, each is put in the order of the one that leads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.moe.merge.matrices import Held
from mergekit_lite.moe.merge.products import product

if TYPE_CHECKING:
    Floats = NDArray[np.float32]
    Neurons = NDArray[np.int64]


def alike_by_weights(lead: Mapping[str, Floats], other: Mapping[str, Floats]) -> Floats:
    """Return, for each neuron of one expert and each of another, the product of their weights.

    Where it is largest in sum, the squared distance of all weights is least.

    Args:
        lead, other: `gate` and `up` (neurons, d), `down` (d, neurons).
    """
    found = product(lead["gate"], other["gate"].T)
    found += product(lead["up"], other["up"].T)
    found += product(lead["down"].T, other["down"])
    return found


def alike_by_activations(lead: Floats, other: Floats) -> Floats:
    """Return the cosine of what neurons of two experts say of tokens, (tokens, neurons) each."""
    return product(_unit(lead).T, _unit(other))


def alike_by_both(
    lead: Mapping[str, Floats], other: Mapping[str, Floats], by_activations: Floats
) -> Floats:
    """Return the cosine of neurons' weights plus that of what they say.

    Args:
        lead, other: see `alike_by_weights`.
        by_activations: what `alike_by_activations` returns.
    """
    norms = [np.sqrt(_squares(expert)) for expert in (lead, other)]
    found = alike_by_weights(lead, other)
    found /= np.maximum(np.outer(*norms), 1e-30)
    return found + by_activations


def _squares(expert: Mapping[str, Floats]) -> Floats:
    """Return the sum of squares of each neuron's weights."""
    inward = np.square(expert["gate"]).sum(1) + np.square(expert["up"]).sum(1)
    found: Floats = inward + np.square(expert["down"]).sum(0)
    return found


def order(alike: Floats) -> Neurons:
    """Return, for each neuron of the leading expert, the one of the other that stands for it.

    It is the assignment with the largest sum. Where every neuron has another nearest one, that is
    it already, and nothing is searched.
    """
    nearest: Neurons = alike.argmax(1)
    if len(np.unique(nearest)) == len(nearest):
        return nearest
    # Here, because it takes long to import.
    from scipy.optimize import linear_sum_assignment

    return np.asarray(linear_sum_assignment(alike, maximize=True)[1], np.int64)


def stored_order(neurons: Neurons, held: Held | None, member: int) -> Floats:
    """Return an order of neurons as that of the rows or columns of a tensor.

    Args:
        neurons: which stands where.
        held: the stacked tensor; None where each expert has its own.
        member: the expert, whose rows are some of a stacked tensor's.
    """
    if held is None:
        return neurons.astype(np.float32)
    if held.kind == "halves":
        neurons = np.concatenate([neurons, neurons + held.neurons])
    elif held.kind == "turns":
        neurons = np.stack([2 * neurons, 2 * neurons + 1], 1).reshape(-1)
    first = member * held.rows if held.axis == "rows" else 0
    return (neurons + first).astype(np.float32)


def _unit(rows: Floats) -> Floats:
    found: Floats = rows / np.maximum(np.linalg.norm(rows, axis=0, keepdims=True), 1e-12)
    return found
