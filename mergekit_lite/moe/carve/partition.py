"""Parts of fixed sizes of a graph, with as much weight as can be found inside of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from mergekit_lite.moe.carve.balanced import assign

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Wide = NDArray[np.float64]
    Numbers = NDArray[np.int64]

ROUNDS = 20
CANDIDATES = 64
"""Neurons of each of two parts that are looked at for an exchange: those that gain most."""


def partition(edges: Floats, nodes: Numbers, sizes: Sequence[int]) -> Numbers:
    """Return the part of each node, with exactly so many nodes in each.

    Parts begin at nodes with much weight that have little to do with each other. In each round all
    nodes go at once to the parts that they have most weight with, as far as there is room; as edges
    are inner products, no round loses weight inside of parts. Then pairs of nodes change places, as
    Kernighan and Lin have them do, until no pair gains.

    Args:
        edges: (n, n) symmetric inner products of vectors that are nowhere negative.
        nodes: that are dealt out; the others are left aside.
        sizes: of the parts; they add up to the number of nodes.
    """
    import numpy as np

    labels = assign(-edges[np.ix_(nodes, _starts(edges, nodes, len(sizes)))].astype(float), sizes)
    for _ in range(ROUNDS):
        found = assign(-_pull(edges, nodes, labels, len(sizes)), sizes)
        if (found == labels).all():
            break
        labels = found
    return _Exchange(edges, nodes, labels, len(sizes)).settled()


def _starts(edges: Floats, nodes: Numbers, count: int) -> Numbers:
    """Return the nodes at which parts begin, by their weight and how unlike they are."""
    import numpy as np

    weight = edges.sum(1, dtype=np.float64)[nodes]
    norm = np.sqrt(np.maximum(edges[nodes, nodes].astype(np.float64), 1e-30))
    unlike = np.ones(len(nodes))
    found: list[int] = []
    for _ in range(count):
        worth = weight * unlike
        worth[found] = -1.0
        found.append(int(worth.argmax()))
        near = edges[nodes, nodes[found[-1]]] / (norm * norm[found[-1]])
        unlike = np.minimum(unlike, np.maximum(1 - near, 0))
    starts: Numbers = nodes[found]
    return starts


def _pull(edges: Floats, nodes: Numbers, labels: Numbers, count: int) -> Wide:
    """Return the weight of each node's edges into each part, (nodes, parts)."""
    import numpy as np

    inside = np.zeros((len(edges), count), np.float32)
    inside[nodes, labels] = 1
    found: Wide = (edges @ inside)[nodes].astype(np.float64)
    return found


class _Exchange:
    """Nodes of two parts that change places."""

    def __init__(self, edges: Floats, nodes: Numbers, labels: Numbers, count: int) -> None:
        import numpy as np

        self.edges, self.nodes, self.labels, self.count = edges, nodes, labels.copy(), count
        # To a node, its own square is no edge.
        self.pull = _pull(edges, nodes, labels, count)
        self.pull[np.arange(len(nodes)), labels] -= edges[nodes, nodes]
        # Sums of rounding errors are no gain.
        self.least = 1e-5 * float(np.abs(self.pull).max(initial=0.0))

    def settled(self) -> Numbers:
        """Exchange until nothing gains, or for as many rounds as there are."""
        for _ in range(ROUNDS):
            moved = [self._between(*pair) for pair in combinations(range(self.count), 2)]
            if not any(moved):
                break
        return self.labels

    def _between(self, left: int, right: int) -> bool:
        """Exchange nodes of two parts, at most all of the smaller one; return whether any were."""
        moved = False
        for _ in range(int(min((self.labels == left).sum(), (self.labels == right).sum()))):
            found = self._best(left, right)
            if found is None:
                break
            self._swap(*found)
            moved = True
        return moved

    def _best(self, left: int, right: int) -> tuple[int, int] | None:
        import numpy as np

        ours, gains = [], []
        for own, other in ((left, right), (right, left)):
            members = np.flatnonzero(self.labels == own)
            gain = self.pull[members, other] - self.pull[members, own]
            best = np.argsort(-gain, kind="stable")[:CANDIDATES]
            ours.append(members[best])
            gains.append(gain[best])
        between = self.edges[np.ix_(self.nodes[ours[0]], self.nodes[ours[1]])]
        worth = gains[0][:, None] + gains[1][None] - 2.0 * between
        row, column = np.unravel_index(int(worth.argmax()), worth.shape)
        if not worth[row, column] > self.least:
            return None
        return int(ours[0][row]), int(ours[1][column])

    def _swap(self, first: int, second: int) -> None:
        left, right = self.labels[first], self.labels[second]
        one, two = (self.edges[self.nodes[node], self.nodes] for node in (first, second))
        for part, coming, going in ((left, two, one), (right, one, two)):
            self.pull[:, part] += coming
            self.pull[:, part] -= going
        # What was added and taken of their own squares is no edge either.
        self.pull[first, left] += one[first]
        self.pull[first, right] -= one[first]
        self.pull[second, right] += two[second]
        self.pull[second, left] -= two[second]
        self.labels[first], self.labels[second] = right, left
