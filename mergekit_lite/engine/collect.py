"""Statistics of a tensor that the torch chain sees tile by tile, on any device.

A collector is fed every tile once a pass, and says after each pass whether it wants another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_lite.engine.ranking import HIGH, LOW, UPPER, Ranking
from mergekit_lite.ops._place import Cut, Sums
from mergekit_lite.ops._statistics import BLOCK, EVERY, Answer, Totals, add_blocks, block_sums

_EXACT = 1 << 22
"""Entries whose sums of 24 bits each are exact in fp64, and fit the memory of a tile."""
Part = tuple[str, int, int]
"""One sum: which kind of sum, of which input, with which other input."""


class Collector(Protocol):
    """Gathers one statistic over several passes."""

    def add(self, values: Sequence[Tensor], first: int) -> None:
        """Take in one tile, whose first entry has the flat index `first`."""

    def next(self) -> bool:
        """End a pass; return whether another one is needed."""

    def answer(self) -> Answer:
        """Return the statistic once no pass is needed any more."""


def keys_of(values: Tensor, *, signed: bool) -> Tensor:
    """Return whole numbers of 32 bits in the order of the entries: magnitude bits, or signed keys.

    A signed key is 2^31 less than what `Ranking` has, so that it fits.
    """
    values = values.float().contiguous().flatten()
    if not signed:
        return values.abs().view(torch.int32)
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 the zero that it equals
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def count(keys: Tensor, ranking: Ranking) -> dict[int, NDArray[np.int64]]:
    """Return the counts of a tile that `Ranking.add` wants next."""
    digits = (keys >> ranking.shift) + (UPPER // 2 if ranking.signed else 0)
    if ranking.stage == 0:
        first = {0: torch.bincount(digits, minlength=UPPER).cpu().numpy()}
        return first if ranking.share is None else first | squares(keys, digits)
    found = {}
    for digit in ranking.bins:
        inside = keys[digits == digit] & (ranking.lower - 1)
        found[digit] = torch.bincount(inside, minlength=ranking.lower).cpu().numpy()
    return found


def squares(keys: Tensor, digits: Tensor) -> dict[int, NDArray[np.int64]]:
    """Return the sums of squared mantissas by upper bits, exactly, in two parts of 24 bits."""
    found = {part: np.zeros(UPPER, np.int64) for part in (HIGH, LOW)}
    for some, where in zip(torch.split(keys, _EXACT), torch.split(digits, _EXACT), strict=True):
        whole = (some & 0x7FFFFF | ((some >> 23) > 0).to(torch.int32) << 23).long()
        square = whole * whole
        for part, terms in ((HIGH, square >> 24), (LOW, square & 0xFFFFFF)):
            sums = torch.bincount(where, weights=terms.double(), minlength=UPPER)
            found[part] += sums.long().cpu().numpy()
    return found


class OrderCollector:
    """Exact k-th largest entries of one tensor: two counts of bits, then the last tie.

    Args:
        ranks: the wanted k.
        size: entries of all tiles together; a larger k counts as this number.
        keep_ties: keep all entries tied with the k-th (saves the third pass).
        signed: rank values, not magnitudes.
        share: in place of the ranks, see `Ranking`.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        size: int,
        *,
        keep_ties: bool,
        signed: bool = False,
        share: float | None = None,
    ) -> None:
        self.ranking = Ranking(ranks, size, signed=signed, share=share)
        self.keep_ties = keep_ties
        self.until = [EVERY if keep_ties else -1] * len(ranks)

    def add(self, values: Sequence[Tensor], first: int) -> None:
        ranking = self.ranking
        keys = keys_of(values[0], signed=ranking.signed)
        if ranking.stage < 2:
            ranking.add(count(keys, ranking))
            return
        for slot, threshold in enumerate(ranking.found):
            if self.until[slot] >= 0 or ranking.ranks[slot] <= 0:
                continue
            key = threshold - (1 << 31) if ranking.signed else threshold
            tied = (keys == key).nonzero().flatten()
            if len(tied) >= ranking.left[slot]:
                self.until[slot] = first + int(tied[ranking.left[slot] - 1]) + 1
            ranking.left[slot] -= len(tied)

    def next(self) -> bool:
        wanted = any(rank > 0 for rank in self.ranking.ranks)
        if self.ranking.stage == 2:
            return False
        return self.ranking.next() or (wanted and not self.keep_ties)

    def answer(self) -> tuple[Cut, ...]:
        return cuts_of(self.ranking, self.until)


def cuts_of(ranking: Ranking, until: Sequence[int]) -> tuple[Cut, ...]:
    """Return the cut of every rank."""
    return tuple(
        Cut(ranking.threshold(slot), until[slot]) if rank > 0 else Cut(float("inf"), 0)
        for slot, rank in enumerate(ranking.ranks)
    )


class EachCollector:
    """A collector of its own for each input; the answer is a tuple of theirs.

    Args:
        make: makes one.
    """

    def __init__(self, make: Callable[[], Collector]) -> None:
        self._make = make
        self._each: list[Collector] = []

    def add(self, values: Sequence[Tensor], first: int) -> None:
        if not self._each:
            self._each = [self._make() for _ in values]
        for collector, value in zip(self._each, values, strict=True):
            collector.add([value], first)

    def next(self) -> bool:
        return any([collector.next() for collector in self._each])

    def answer(self) -> Answer:
        return tuple(collector.answer() for collector in self._each)


class TotalsCollector:
    """Sums of magnitudes and inner products, in blocks of 4096 entries whatever the tiles."""

    def __init__(self, needs: Totals) -> None:
        self.needs = needs
        self.blocks: dict[Part, list[float]] = {}
        self.count = 0
        self.rest: list[Tensor] = []

    def add(self, values: Sequence[Tensor], first: int) -> None:
        exact = [value.flatten().double() for value in values]
        if self.rest:
            exact = [torch.cat(pair) for pair in zip(self.rest, exact, strict=True)]
        self.count = len(exact)
        # Tiles of whole rows end anywhere; a block that is cut waits for the next tile.
        whole = exact[0].numel() // BLOCK * BLOCK
        self.rest = [value[whole:] for value in exact]
        self._add_blocks([value[:whole] for value in exact])

    def _add_blocks(self, exact: list[Tensor]) -> None:
        for i, left in enumerate(exact):
            if self.needs.absolute:
                self._add("absolute", i, i, left.abs())
            if self.needs.plain:
                self._add("plain", i, i, left)
            for j, right in enumerate(exact[: i + 1] if self.needs.gram else []):
                self._add("gram", j, i, left * right)

    def _add(self, kind: str, i: int, j: int, terms: Tensor) -> None:
        self.blocks.setdefault((kind, i, j), []).extend(block_sums(terms))

    def end(self) -> dict[Part, list[float]]:
        """Return the block sums of all tiles."""
        self._add_blocks(self.rest)
        self.rest = []
        return self.blocks

    def next(self) -> bool:
        return False

    def answer(self) -> Sums:
        self.end()
        return sums_of(self.needs, self.count, lambda part: add_blocks(self.blocks[part]))


def sums_of(needs: Totals, count: int, total: Callable[[Part], float]) -> Sums:
    """Return the sums of `count` inputs from each single one."""
    n = range(count)
    gram = [[total(("gram", min(i, j), max(i, j))) for j in n] for i in n if needs.gram]
    return Sums(
        absolute=tuple(total(("absolute", i, i)) for i in n if needs.absolute),
        gram=tuple(map(tuple, gram)),
        plain=tuple(total(("plain", i, i)) for i in n if needs.plain),
    )
