"""k-means on points that are known by their inner products alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.moe.fewer.statistics import Numbers

ROUNDS = 100
_TIE = 1e-12


def kernel_means(products: Numbers, count: int, first: int) -> list[list[int]]:
    """Return `count` clusters of points, none of them empty, as lists of places in order.

    Nothing is drawn at random: centres begin at one point and then, one after the other, at the
    point that is farthest from those before. At most 100 rounds.

    Args:
        products: inner products of all pairs.
        count: number of clusters.
        first: point at which the first centre begins.
    """
    own = np.diagonal(products)
    apart = own[:, None] + own[None, :] - 2 * products
    chosen = [first]
    while len(chosen) < count:
        near = apart[:, chosen].min(1)
        near[chosen] = -1.0
        chosen.append(_least(-near))
    labels = np.array([_least(row) for row in apart[:, chosen]])
    labels[chosen] = np.arange(count)
    for _ in range(ROUNDS):
        found = _filled(_nearest(products, labels, count), apart, count)
        if (found == labels).all():
            break
        labels = found
    return [[int(at) for at in np.flatnonzero(labels == cluster)] for cluster in range(count)]


def medoid(products: Numbers, members: list[int]) -> int:
    """Return the member that is nearest to the mean of all; of equally near ones the first."""
    inside = products[np.ix_(members, members)]
    return members[_least(np.diagonal(inside) - 2 * inside.mean(1))]


def _least(values: Numbers) -> int:
    """Return the first place of the least value; what differs by rounding alone is the same."""
    bound = values.min() + _TIE * max(float(np.abs(values).max()), 1e-300)
    return int(np.flatnonzero(values <= bound)[0])


def _nearest(products: Numbers, labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the nearest centre of each point; of equally near ones that which it has."""
    inside = (labels[:, None] == np.arange(count)).astype(np.float64)
    inside /= inside.sum(0)
    to_centres = products @ inside
    within = (inside * to_centres).sum(0)
    far = within[None, :] - 2 * to_centres
    best = np.array([_least(row) for row in far])
    points = np.arange(len(labels))
    slack = _TIE * np.maximum(np.abs(far).max(1), 1e-300)
    stays = far[points, labels] <= far[points, best] + slack
    return np.where(stays, labels, best)


def _filled(labels: NDArray[np.int64], apart: Numbers, count: int) -> NDArray[np.int64]:
    """Give each empty cluster the point that is farthest from the others of its own."""
    found = labels.copy()
    for cluster in range(count):
        if (found == cluster).any():
            continue
        same = found[:, None] == found[None, :]
        spread = (apart * same).sum(1) / same.sum(1)
        spread[same.sum(1) == 1] = -1.0
        found[_least(-spread)] = cluster
    return found
