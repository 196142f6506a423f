"""Statistics of a whole model, gathered from rows that any number of threads see in any order."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mergekit_lite.engine.exact import ExactSum
from mergekit_lite.engine.ranking import Ranking
from mergekit_lite.ops._place import Cut
from mergekit_lite.ops._statistics import EVERY, OUTSIDE, Answer, Order, Totals
from mergekit_lite.plan.questions import Question

if TYPE_CHECKING:
    from torch import Tensor


class Tally(Protocol):
    """Gathers the answer of one question."""

    question: Question

    def row(self, layer: int | None) -> RowTally:
        """Return what takes in one row, in one thread."""

    def next(self) -> bool:
        """End a pass; return whether another one is needed."""

    def answer(self) -> Answer:
        """Return the answer once no pass is needed any more."""


class RowTally(Protocol):
    """One row's part in a tally."""

    def add(self, values: Sequence[Tensor], first: int) -> None:
        """Take in the next tile of the row."""

    def end(self) -> None:
        """Hand over what the row has said."""


@dataclass(frozen=True)
class Counting:
    """A question as one row hears it.

    Attributes:
        tally: gathers the answer.
        at: position of the step that asks.
    """

    tally: Tally
    at: int


class OrderTally:
    """Exact k-th largest entries of the model; all entries tied with the k-th are kept."""

    def __init__(self, question: Question, needs: Order) -> None:
        self.question, self.needs = question, needs
        self.ranks = needs.ranks(question.params, question.size)
        self._each: list[Ranking] = []
        self._lock = threading.Lock()

    def rankings(self, inputs: int) -> list[Ranking]:
        """Return a ranking for each of the inputs that are ranked."""
        inputs = inputs if self.needs.each else 1
        with self._lock:
            while len(self._each) < inputs:
                size, signed = self.question.size, self.needs.signed
                zeros = sum(entries for _, entries in self.question.untouched)
                share = self.needs.share_for(self.question.params)
                self._each.append(
                    Ranking(self.ranks, size, signed=signed, zeros=zeros, share=share)
                )
        return self._each

    def row(self, layer: int | None) -> RowTally:
        return _RankedRow(self)

    def next(self) -> bool:
        return any([ranking.next() for ranking in self._each])

    def answer(self) -> Answer:
        every = tuple(
            tuple(
                Cut(ranking.threshold(slot), EVERY if rank > 0 else 0)
                for slot, rank in enumerate(ranking.ranks)
            )
            for ranking in self._each
        )
        return every if self.needs.each or not every else every[0]


class _RankedRow:
    def __init__(self, tally: OrderTally) -> None:
        self._tally = tally

    def add(self, values: Sequence[Tensor], first: int) -> None:
        from mergekit_lite.engine.collect import count, keys_of

        for ranking, value in zip(self._tally.rankings(len(values)), values, strict=False):
            ranking.add(count(keys_of(value, signed=ranking.signed), ranking))

    def end(self) -> None:
        return None


class TotalsTally:
    """Sums over the model or over each layer, block sums added exactly."""

    def __init__(self, question: Question, needs: Totals) -> None:
        self.question, self.needs = question, needs
        self.inputs = 0
        self._sums: dict[int, dict[tuple[str, int, int], ExactSum]] = {}
        self._lock = threading.Lock()

    def row(self, layer: int | None) -> RowTally:
        apart = self.needs.by_layer and layer is not None
        return _SummedRow(self, layer if apart and layer is not None else OUTSIDE)

    def add(self, layer: int, blocks: dict[tuple[str, int, int], list[float]], inputs: int) -> None:
        """Take in the block sums of a row."""
        with self._lock:
            self.inputs = max(self.inputs, inputs)
            sums = self._sums.setdefault(layer, defaultdict(ExactSum))
            for part, terms in blocks.items():
                sums[part].add(terms)

    def next(self) -> bool:
        return False

    def answer(self) -> Answer:
        from mergekit_lite.engine.collect import sums_of

        self._add_untouched()
        every = {
            layer: sums_of(self.needs, self.inputs, lambda part, sums=sums: sums[part].total())  # type: ignore[misc]
            for layer, sums in sorted(self._sums.items())
        }
        return every if self.needs.by_layer else every[OUTSIDE]

    def _add_untouched(self) -> None:
        """Add what no row brings: entries that are all the same number, mostly zero."""
        alike = self.needs.of_zeros or (0.0,) * self.inputs
        for layer, entries in self.question.untouched:
            place = layer if self.needs.by_layer else OUTSIDE
            blocks = {}
            for i, left in enumerate(alike):
                blocks["absolute", i, i] = [abs(left) * entries]
                blocks["plain", i, i] = [left * entries]
                for j, right in enumerate(alike[: i + 1]):
                    blocks["gram", j, i] = [left * right * entries]
            self.add(place, blocks, 0)


class _SummedRow:
    def __init__(self, tally: TotalsTally, layer: int) -> None:
        from mergekit_lite.engine.collect import TotalsCollector

        self._tally, self._layer = tally, layer
        self._collector = TotalsCollector(tally.needs)

    def add(self, values: Sequence[Tensor], first: int) -> None:
        self._collector.add(values, first)

    def end(self) -> None:
        blocks = self._collector.end()
        self._tally.add(self._layer, blocks, self._collector.count)


def tally_for(question: Question) -> Tally:
    """Return an empty tally for a question.

    Raises:
        TypeError: it is about neither order nor sums.
    """
    needs = question.needs
    if isinstance(needs, Order):
        return OrderTally(question, needs)
    if isinstance(needs, Totals):
        return TotalsTally(question, needs)
    raise TypeError(f"`{question.op}` asks for a statistic of no known kind")
