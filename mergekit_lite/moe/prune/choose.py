"""From scores to the experts that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mergekit_lite.moe.fewer.statistics import Numbers

DEPTH = 0.75
"""Part of the layers, from the first on, in which super experts are looked for."""


def best(
    scores: Numbers, keep: int, groups: int = 1, protected: Sequence[int] = ()
) -> tuple[int, ...]:
    """Return the experts that stay, in their order.

    Args:
        scores: of each expert; of equal ones the first stays.
        keep: how many stay.
        groups: routers that choose groups first see so many runs of equal length, which must stay
            of equal length.
        protected: those that stay before all others.
    """
    size, each = len(scores) // groups, keep // groups
    guarded = set(protected)
    found: list[int] = []
    for group in range(groups):
        own = range(group * size, (group + 1) * size)
        ranked = sorted(own, key=lambda e: (e not in guarded, -scores[e], e))
        found += sorted(ranked[:each])
    return tuple(found)


def super_experts(peaks: Mapping[int, Numbers], *, everywhere: bool) -> dict[int, list[int]]:
    """Return the experts of each layer whose largest activation stands out of the whole model.

    It is above the 99.5th percentile of all experts' and above a tenth of the largest.

    Args:
        peaks: largest activation of each expert, by layer.
        everywhere: look in all layers, not in the first three quarters alone.
    """
    every = np.concatenate(list(peaks.values()))
    bound = max(float(np.percentile(every, 99.5)), float(every.max()) / 10)
    layers = sorted(peaks)
    last = len(layers) if everywhere else int(len(layers) * DEPTH)
    return {
        layer: [int(expert) for expert in np.flatnonzero(peaks[layer] > bound)]
        for layer in layers[:last]
    }
