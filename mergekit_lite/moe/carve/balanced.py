"""Groups of fixed sizes at the least cost in all: the transport problem with few groups."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Costs = NDArray[np.float64]
    Labels = NDArray[np.int64]


def assign(costs: Costs, sizes: Sequence[int]) -> Labels:
    """Return the group of each item, with exactly so many items in each and the least total cost.

    The same optimum as the assignment problem in which each group stands `sizes` times, by
    successive shortest paths between the groups: every item begins in its cheapest group, then
    items move one at a time, along whichever chain of groups costs least, from groups that have too
    many to groups that have too few.

    Args:
        costs: (items, groups).
        sizes: of the groups; they add up to the number of items.

    Raises:
        ValueError: they do not.
    """
    import numpy as np

    if sum(sizes) != len(costs):
        raise ValueError(f"{sum(sizes)} places for {len(costs)} items")
    return _Transport(costs, np.asarray(sizes)).solved()


class _Transport:
    def __init__(self, costs: Costs, sizes: Labels) -> None:
        import numpy as np

        self.costs, self.sizes = costs, sizes
        self.groups = costs.shape[1]
        self.labels: Labels = costs.argmin(1)
        self.counts = np.bincount(self.labels, minlength=self.groups)
        # What it costs at least to move an item of one group to another, and which item it is.
        self.moves = np.full((self.groups, self.groups), np.inf)
        self.movers = np.zeros((self.groups, self.groups), np.int64)
        # Sums of rounding errors are no gain.
        self.least = 1e-12 * float(np.abs(costs).max(initial=0.0))
        for group in range(self.groups):
            self._look(group)

    def solved(self) -> Labels:
        while (self.counts > self.sizes).any():
            path = self._cheapest()
            for source, target in pairwise(path):
                self.labels[self.movers[source, target]] = target
            self.counts[path[0]] -= 1
            self.counts[path[-1]] += 1
            for group in path:
                self._look(group)
        return self.labels

    def _look(self, group: int) -> None:
        """Find the cheapest moves out of a group."""
        import numpy as np

        members = np.flatnonzero(self.labels == group)
        if not len(members):
            self.moves[group] = np.inf
            return
        own = self.costs[members] - self.costs[members, group][:, None]
        best = own.argmin(0)
        self.moves[group] = own[best, np.arange(self.groups)]
        self.moves[group, group] = np.inf
        self.movers[group] = members[best]

    def _cheapest(self) -> list[int]:
        """Return the cheapest chain from a group with too many to one with too few."""
        import numpy as np

        reach = np.where(self.counts > self.sizes, 0.0, np.inf)
        before = np.full(self.groups, -1)
        for _ in range(self.groups):
            through = reach[:, None] + self.moves
            source = through.argmin(0)
            cost = through[source, np.arange(self.groups)]
            better = cost < reach - self.least
            if not better.any():
                break
            reach = np.where(better, cost, reach)
            before = np.where(better, source, before)
        ends = np.where(self.counts < self.sizes, reach, np.inf)
        path = [int(ends.argmin())]
        while before[path[0]] >= 0 and self.counts[path[0]] <= self.sizes[path[0]]:
            path.insert(0, int(before[path[0]]))
        return path
