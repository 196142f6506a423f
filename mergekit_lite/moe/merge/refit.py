"""Down projections of merged experts, fitted to what their group said (after MergeMoE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mergekit_lite.moe.fewer.statistics import Numbers
from mergekit_lite.moe.merge.products import product, ridge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


def refitted(
    merged: Mapping[str, Floats],
    experts: Mapping[int, Mapping[str, Floats]],
    inputs: Floats,
    given: Floats,
    penalty: float,
) -> Floats:
    """Return the down projection with which a merged expert says what its group said.

    Of the tokens that pass any expert of the group, the sum over these of weight times output is to
    be the sum of the weights times the output of the merged expert: least squares in fp64, held by
    the penalty to the mean of the down projections.

    Args:
        merged: `gate`, `up` and `down` of the mean.
        experts: the same of each expert of the group.
        inputs: (tokens, d) of the layer.
        given: (tokens, experts of the layer) the weights that the router gave, 0 where it did not.
        penalty: see `ridge`.
    """
    weights = {expert: given[:, expert].astype(np.float64) for expert in experts}
    # One after the other, so that no library chooses the order of the sum.
    total: Numbers = np.asarray(sum(weights.values()))
    passed = total > 0
    if not passed.any():
        return merged["down"]
    seen = inputs[passed]
    wanted = np.zeros((len(seen), merged["down"].shape[0]))
    for expert, own in experts.items():
        said = product(neurons(own, seen), own["down"].T).astype(np.float64)
        wanted += weights[expert][passed, None] * said
    hidden = neurons(merged, seen).astype(np.float64) * total[passed, None]
    down = merged["down"].astype(np.float64)
    change = ridge(hidden, wanted - product(hidden, down.T), penalty)
    return np.asarray((down + change.T).astype(np.float32))


def neurons(expert: Mapping[str, Floats], inputs: Floats) -> Floats:
    """Return silu(gate(x)) * up(x), (tokens, neurons)."""
    gate = product(inputs, expert["gate"].T)
    with np.errstate(over="ignore"):
        found: Floats = gate / (1 + np.exp(-gate)) * product(inputs, expert["up"].T)
    return found
