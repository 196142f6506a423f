"""What a model makes of each text after its layers: how well it predicts it, where it puts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import Batch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class SampleLoss:
    """The loss of one text.

    Attributes:
        row: index of the text.
        nats: loss, summed over its tokens but the first.
        tokens: how many those are.
    """

    row: int
    nats: float
    tokens: int


@dataclass(frozen=True)
class SampleLogits:
    """What a model says of each token of one text but the first, from those before it.

    Attributes:
        row: index of the text.
        targets: (tokens - 1,) ids of the tokens that there are.
        logits: (tokens - 1, vocabulary), fp32.
    """

    row: int
    targets: Tensor
    logits: Tensor


def sample_logits(
    stream: Stream, batches: Sequence[Batch], hidden: Sequence[Tensor]
) -> Iterator[SampleLogits]:
    """Yield the logits of every text; those of one text are in memory at a time.

    Args:
        stream: of the model, with all that is outside its layers in memory.
        batches: what was run.
        hidden: that left the last layer.
    """
    for row, one, (states,) in one_by_one(batches, hidden):
        logits = stream.logits(one, states)[0, :-1].float()
        yield SampleLogits(row, one.ids[0, 1:].to(logits.device), logits)


def sample_losses(
    stream: Stream, batches: Sequence[Batch], hidden: Sequence[Tensor]
) -> Iterator[SampleLoss]:
    """Yield the loss of every text; arguments are those of `sample_logits`."""
    import torch

    for found in sample_logits(stream, batches, hidden):
        loss = torch.nn.functional.cross_entropy(found.logits, found.targets, reduction="sum")
        yield SampleLoss(found.row, float(loss), len(found.targets))


def text_vectors(
    stream: Stream, batches: Sequence[Batch], hidden: Sequence[Tensor]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield for every text the mean over its tokens of what enters the head, at norm 1.

    Args:
        stream: of the model, with all that is outside its layers in memory.
        batches: what was run.
        hidden: that left the last layer.
    """
    entered: list[Tensor] = []
    head = stream.skeleton.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    try:
        for row, one, (states,) in one_by_one(batches, hidden):
            stream.logits(one, states)
            mean = entered.pop()[0].double().mean(0)
            yield row, (mean / mean.norm().clamp(min=1e-30)).cpu().numpy()
    finally:
        hook.remove()


def one_by_one(
    batches: Sequence[Batch], *states: Sequence[Tensor]
) -> Iterator[tuple[int, Batch, list[Tensor]]]:
    """Yield every text alone, without padding, and its part of each of the states.

    Args:
        batches: what was run.
        states: (samples, longest, width) of each batch, one or more of them.
    """
    for batch, *held in zip(batches, *states, strict=True):
        for number, row in enumerate(batch.rows):
            mask = batch.mask[number]
            domain = batch.domains[number : number + 1]
            types = None if batch.types is None else batch.types[number, mask][None]
            one = Batch(batch.ids[number, mask][None], mask[mask][None], domain, (row,), types)
            yield row, one, [each[number, mask][None] for each in held]
