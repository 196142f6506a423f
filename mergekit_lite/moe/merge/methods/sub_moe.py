"""Sub-MoE: experts whose outputs point the same way, token by token, are clustered."""

from __future__ import annotations

from mergekit_lite.moe.merge.clusters import kernel_means
from mergekit_lite.moe.merge.seen import Seen, ranked


def sub_moe(seen: Seen, keep: int) -> list[list[int]]:
    """Return groups; the first of each, that which most tokens chose, leads.

    k-means on the cosines of what experts say of the same token, on average over tokens. The paper
    then writes the matrices of a group side by side, W_i = U S V_i^T, and keeps U S and the mean of
    the V_i: with all singular values that is the mean of the W_i, which is what is built here. Its
    budget for pairs of layers is none that a config can say: every layer has as many.
    """
    by_count = ranked(seen.frequency)
    clusters = kernel_means(seen.measured["cosines"], keep, by_count[0])
    return [sorted(members, key=by_count.index) for members in clusters]
