"""HC-SMoE: experts that say the same on average are clustered from the bottom up."""

from __future__ import annotations

import numpy as np

from mergekit_lite.moe.merge.clusters import medoid
from mergekit_lite.moe.merge.seen import Seen


def hc_smoe(seen: Seen, keep: int) -> list[list[int]]:
    """Return groups; the first of each leads.

    Each expert is the mean of what it says of all tokens, whether they chose it or not. Clusters
    whose experts are nearest on average (Euclidean) become one until `keep` are left; the expert
    nearest to the mean of its cluster leads.
    """
    # Here, because it takes a third of a second to import.
    from scipy.cluster.hierarchy import cut_tree, linkage

    said = seen.measured["said"]
    if keep == seen.experts:
        return [[expert] for expert in range(keep)]
    labels = cut_tree(linkage(said, "average"), n_clusters=keep)[:, 0]
    products = said @ said.T
    groups = []
    for cluster in range(keep):
        members = [int(expert) for expert in np.flatnonzero(labels == cluster)]
        lead = medoid(products, members)
        groups.append([lead, *(expert for expert in members if expert != lead)])
    return groups
