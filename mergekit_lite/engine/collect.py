"""Statistics of a tensor that the torch chain sees tile by tile, on any device.

A collector is fed every tile once a pass, and says after each pass whether it wants another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mergekit_lite.ops._chain import Answer
from mergekit_lite.ops._place import Cut, Sums
from mergekit_lite.ops._statistics import BLOCK, EVERY, Totals, add_blocks, block_sums

UPPER = 1 << 16
LOWER = 1 << 15


class Collector(Protocol):
    """Gathers one statistic over several passes."""

    def add(self, values: Sequence[Tensor], first: int) -> None:
        """Take in one tile, whose first entry has the flat index `first`."""

    def next(self) -> bool:
        """End a pass; return whether another one is needed."""

    def answer(self) -> Answer:
        """Return the statistic once no pass is needed any more."""


class OrderCollector:
    """Exact k-th largest magnitudes: bits 30..15, then bits 14..0, then the last tie.

    Args:
        ranks: the wanted k.
        size: entries of all tiles together; a larger k counts as this number.
        keep_ties: keep all entries tied with the k-th (saves the third pass).
    """

    def __init__(self, ranks: Sequence[int], size: int, *, keep_ties: bool) -> None:
        self.ranks = [min(rank, size) for rank in ranks]
        self.keep_ties = keep_ties
        self.stage = 0
        self.upper = torch.zeros(UPPER, dtype=torch.int64)
        self.lower: dict[int, Tensor] = {}
        self.left = list(self.ranks)
        self.digits = [0] * len(self.ranks)
        self.until = [EVERY if keep_ties else -1] * len(self.ranks)

    def add(self, values: Sequence[Tensor], first: int) -> None:
        bits = values[0].abs().contiguous().flatten().view(torch.int32)
        if self.stage == 0:
            self.upper += torch.bincount(bits >> 15, minlength=UPPER).cpu()
        elif self.stage == 1:
            for digit, bins in self.lower.items():
                inside = bits[(bits >> 15) == digit] & (LOWER - 1)
                bins += torch.bincount(inside, minlength=LOWER).cpu()
        else:
            for slot, threshold in enumerate(self.digits):
                if self.until[slot] >= 0 or self.ranks[slot] <= 0:
                    continue
                tied = (bits == threshold).nonzero().flatten()
                if len(tied) >= self.left[slot]:
                    self.until[slot] = first + int(tied[self.left[slot] - 1]) + 1
                self.left[slot] -= len(tied)

    def next(self) -> bool:
        wanted = [slot for slot, rank in enumerate(self.ranks) if rank > 0]
        if self.stage == 0:
            for slot in wanted:
                self.digits[slot], self.left[slot] = _bin_of(self.upper, self.left[slot])
                self.lower[self.digits[slot]] = torch.zeros(LOWER, dtype=torch.int64)
        elif self.stage == 1:
            for slot in wanted:
                digit = self.digits[slot]
                rest, self.left[slot] = _bin_of(self.lower[digit], self.left[slot])
                self.digits[slot] = (digit << 15) | rest
        self.stage += 1
        return bool(wanted) and self.stage < (2 if self.keep_ties else 3)

    def answer(self) -> tuple[Cut, ...]:
        return tuple(
            Cut(as_magnitude(bits), until) if rank > 0 else Cut(float("inf"), 0)
            for rank, bits, until in zip(self.ranks, self.digits, self.until, strict=True)
        )


def as_magnitude(bits: int) -> float:
    """Return the fp32 number with these magnitude bits."""
    return float(torch.tensor([bits], dtype=torch.int32).view(torch.float32))


def _bin_of(bins: Tensor, rank: int) -> tuple[int, int]:
    """Return the bin that holds the `rank`-th largest entry, and its rank within that bin."""
    from_top = bins.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, torch.tensor(rank)))
    return len(bins) - 1 - place, rank - int(from_top[place - 1] if place else 0)


class TotalsCollector:
    """Sums of magnitudes and inner products, in blocks of 4096 entries whatever the tiles."""

    def __init__(self, needs: Totals) -> None:
        self.needs = needs
        self.absolute: dict[int, list[float]] = {}
        self.gram: dict[tuple[int, int], list[float]] = {}
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
                self.absolute.setdefault(i, []).extend(block_sums(left.abs()))
            for j, right in enumerate(exact[: i + 1] if self.needs.gram else []):
                self.gram.setdefault((j, i), []).extend(block_sums(left * right))

    def next(self) -> bool:
        return False

    def answer(self) -> Sums:
        self._add_blocks(self.rest)
        self.rest = []
        n = range(self.count)
        gram = [[add_blocks(self.gram[min(i, j), max(i, j)]) for j in n] for i in n if self.gram]
        return Sums(
            absolute=tuple(add_blocks(self.absolute[i]) for i in n if self.absolute),
            gram=tuple(map(tuple, gram)),
        )
