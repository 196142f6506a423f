"""UNCURL: experts that routers score alike are found by spectral clustering."""

from __future__ import annotations

import numpy as np

from mergekit_lite.moe.merge.clusters import kernel_means
from mergekit_lite.moe.merge.seen import Seen, cosines_of_products, ranked


def uncurl(seen: Seen, keep: int) -> list[list[int]]:
    """Return groups; the first of each, that which most tokens chose, leads.

    Affinity is the cosine of two experts' logits over tokens, counted from 0 to 1. Each expert is
    its row of the `keep` first eigenvectors of the normalised affinity, at norm 1; these are
    clustered by k-means.
    """
    by_count = ranked(seen.frequency)
    affinity = (1 + cosines_of_products(seen.measured["logit_gram"])) / 2
    scale = 1 / np.sqrt(np.maximum(affinity.sum(1), 1e-300))
    _, vectors = np.linalg.eigh(affinity * scale[:, None] * scale[None, :])
    rows = vectors[:, -keep:]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    # Inner products, because the signs of eigenvectors are nobody's.
    clusters = kernel_means(rows @ rows.T, keep, by_count[0])
    return [sorted(members, key=by_count.index) for members in clusters]
