"""Gradients of what a model says of texts, run back through it with one layer in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit_lite.calibrate.losses import one_by_one
from mergekit_lite.calibrate.skeleton import Place
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import Batch

if TYPE_CHECKING:
    from torch import Tensor

SEED = 20260101
_ROWS = 64


@dataclass(frozen=True)
class Slope:
    """What is summed over the gradients of texts.

    Attributes:
        kind: name of the statistic.
        drawn: labels are drawn from the model, as the Fisher information wants it; else they are
            the text's own tokens.
        squares: squared gradients of log-probabilities, over the number of labels; else magnitudes
            of the gradient of each text's mean loss, over the number of texts.
    """

    kind: str
    drawn: bool
    squares: bool


SLOPES: Mapping[str, Slope] = {
    "fisher": Slope("fisher", drawn=True, squares=True),
    "gradient": Slope("gradient", drawn=False, squares=False),
}
"""Every kind of statistic that gradients give."""


class Slopes:
    """Sums of one kind over the gradients of texts, each text by itself.

    The order of calls is that of the chain rule: `ends`, `layer` from the last one to the first,
    `outside`. Sums are in fp64.

    Args:
        stream: of the model, with gradients.
        batches: the texts.
        slope: what is summed.
    """

    def __init__(self, stream: Stream, batches: Sequence[Batch], slope: Slope) -> None:
        self._stream, self._batches, self._slope = stream, batches, slope
        lengths = [int(tokens) for batch in batches for tokens in batch.mask.sum(1)]
        self.labels = sum(self._labels(tokens) for tokens in lengths)
        self._count = self.labels if slope.squares else len(lengths)

    def ends(self, left: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients by the hidden states that left the last layer.

        Args:
            left: those states.
        """
        import torch

        found = [torch.zeros_like(states) for states in left]
        for row, one, (states,) in one_by_one(self._batches, left):
            leaf = states.requires_grad_()
            torch.autograd.backward(self._score(one, leaf, row))
            _put(found, self._batches, row, leaf.grad)
            for weight in self._stream.skeleton.model.parameters():
                weight.grad = None
        return found

    def layer(
        self, place: Place, entering: Sequence[Tensor], gradients: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return the sums of a layer, whose weights are in memory, by names of transformers.

        Args:
            place: the layer.
            entering: hidden states that enter it.
            gradients: by the states that leave it; replaced by those that enter.
        """
        import torch

        sums = _Sums(place.module, f"{place.name}.", self._slope.squares)
        for row, one, (states, after) in one_by_one(self._batches, entering, gradients):
            leaf = states.requires_grad_()
            torch.autograd.backward(self._stream.passed(place, one, leaf), after)
            _put(gradients, self._batches, row, leaf.grad)
            sums.add()
        return sums.mean(self._count)

    def shared(self, place: Place) -> set[str]:
        """Return the weights outside the layers that every layer computes with.

        The layer's weights are in memory, and those outside. Gradients of one text come to such a
        weight from each layer, so that they cannot be summed layer by layer.
        """
        import torch

        skeleton = self._stream.skeleton
        one = torch.zeros((1, 2), dtype=torch.int64)
        states = torch.zeros((1, 2, skeleton.width), dtype=skeleton.dtype).requires_grad_()
        batch = Batch(one, one == 0, one[:, 0], (0,))
        torch.autograd.backward(self._stream.passed(place, batch, states).sum())
        found = set()
        for name, weight in skeleton.model.named_parameters():
            if weight.grad is not None and not name.startswith(f"{place.name}."):
                found.add(name)
            weight.grad = None
        return found

    def outside(
        self, left: Sequence[Tensor], gradients: Sequence[Tensor], shared: Set[str] = frozenset()
    ) -> dict[str, Tensor]:
        """Return the sums of all weights outside the layers, which are in memory.

        Embedding and head may be one: its gradient is the sum of both, before it is squared.

        Args:
            left: hidden states that left the last layer.
            gradients: by the states that entered the first one.
            shared: weights to leave out.
        """
        import torch

        sums = _Sums(self._stream.skeleton.model, "", self._slope.squares, shared)
        for row, one, (states, after) in one_by_one(self._batches, left, gradients):
            torch.autograd.backward(self._score(one, states, row))
            entered = self._stream.embedded(one)
            if entered.requires_grad:
                torch.autograd.backward(entered, after)
            sums.add()
        return sums.mean(self._count)

    def _labels(self, tokens: int) -> int:
        """Return how many labels a text of some tokens has."""
        return 1 if self._stream.skeleton.head == "labels" else tokens - 1

    def _score(self, one: Batch, states: Tensor, row: int) -> Tensor:
        """Return the log-probability of a text's labels, or its mean loss, with its gradient."""
        import torch

        logits = self._stream.logits(one, states)
        if self._stream.skeleton.head != "labels":
            logits = logits[0, :-1]
        labels = drawn(logits.detach(), row) if self._slope.drawn else one.ids[0, 1:]
        chosen = torch.log_softmax(logits.float(), 1).gather(1, labels[:, None].to(logits.device))
        total = chosen.sum()
        return total if self._slope.squares else -total / max(len(labels), 1)


def drawn(logits: Tensor, row: int, seed: int = SEED) -> Tensor:
    """Return a label for each row of logits, drawn by their probabilities.

    Which ones follows from the seed and the text's number alone.

    Args:
        logits: (labels, classes).
        row: number of the text.
        seed: of all draws.

    Returns:
        (labels,), int64, on the CPU.
    """
    import torch

    raw = np.random.Philox(key=[seed, row]).random_raw(len(logits))
    uniform = torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    found = []
    for first in range(0, len(logits), _ROWS):
        part, chance = (value[first : first + _ROWS] for value in (logits, uniform))
        summed = torch.softmax(part.cpu().double(), 1).cumsum(1)
        at = torch.searchsorted(summed, chance[:, None] * summed[:, -1:], right=True)
        found.append(at[:, 0].clamp(max=logits.shape[1] - 1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


class _Sums:
    """Sums over the gradients that weights have, text after text, in fp64."""

    def __init__(
        self, module: Any, before: str, squares: bool, without: Set[str] = frozenset()
    ) -> None:
        import torch

        self._squares = squares
        self._weights = {
            f"{before}{name}": weight.requires_grad_()
            for name, weight in module.named_parameters()
            if not weight.is_meta and weight.is_floating_point() and name not in without
        }
        self._sums = {
            name: torch.zeros_like(weight, dtype=torch.float64, requires_grad=False)
            for name, weight in self._weights.items()
        }

    def add(self) -> None:
        """Add the gradients of one text, and forget them."""
        for name, weight in self._weights.items():
            if weight.grad is None:
                continue
            wide = weight.grad.double()
            self._sums[name] += wide.square() if self._squares else wide.abs()
            weight.grad = None

    def mean(self, count: int) -> dict[str, Tensor]:
        """Return the sums over a count, in fp32."""
        for weight in self._weights.values():
            weight.requires_grad_(False)
        return {name: (value / count).float().cpu() for name, value in self._sums.items()}


def _put(
    states: Sequence[Tensor], batches: Sequence[Batch], row: int, value: Tensor | None
) -> None:
    """Put what belongs to one text where it stands in its batch."""
    for batch, held in zip(batches, states, strict=True):
        if row in batch.rows and value is not None:
            number = batch.rows.index(row)
            held[number, batch.mask[number]] = value[0].to(held.dtype)
