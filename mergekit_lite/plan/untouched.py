"""The entries that whole-model statistics are about and that no row brings: nobody changes them.

An adapter leaves most tensors of its base alone, and a model may lack some. Their rows are copies,
or have no steps for that expert, since a zero difference stays one. A share of the whole model is
still one of all its entries: so they are counted here, and no byte is read for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

from mergekit_lite.ops._statistics import OUTSIDE
from mergekit_lite.plan.questions import asked_by
from mergekit_lite.plan.types import Job, Read, Step


class Untouched:
    """Counts entries by question and by layer, while the rows of a plan are made."""

    def __init__(self) -> None:
        self._entries: dict[str, Counter[int]] = {}

    def count(
        self,
        shape: Sequence[int],
        layer: int | None,
        reads: Sequence[Read],
        steps: Sequence[Step],
    ) -> None:
        """Take in a tensor.

        Args:
            shape, layer: of the tensor.
            reads: the experts' inputs; those that are `zero` are what it is about.
            steps: the whole chain, with the steps of experts that change nothing.
        """
        silent = {read.source for read in reads if read.zero}
        alone = len(silent) == len(reads)
        job = Job("", "", tuple(shape), 0, 0, "merge", tuple(reads), steps=tuple(steps))
        for _, question in asked_by(job):
            if alone or question.expert in silent:
                entries = self._entries.setdefault(question.key, Counter())
                entries[OUTSIDE if layer is None else layer] += prod(shape)

    def table(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Return (layer, entries) by question, as a plan has them."""
        return {key: tuple(sorted(layers.items())) for key, layers in self._entries.items()}
