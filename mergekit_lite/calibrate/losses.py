"""How well a model predicts each text, after the layers have been run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import Batch

if TYPE_CHECKING:
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


def sample_losses(
    stream: Stream, batches: Sequence[Batch], hidden: Sequence[Tensor]
) -> Iterator[SampleLoss]:
    """Yield the loss of every text; logits of one text are in memory at a time.

    Args:
        stream: of the model, with all that is outside its layers in memory.
        batches: what was run.
        hidden: that left the last layer.
    """
    import torch

    for batch, states in zip(batches, hidden, strict=True):
        for number, row in enumerate(batch.rows):
            mask = batch.mask[number]
            domain = batch.domains[number : number + 1]
            one = Batch(batch.ids[number, mask][None], mask[mask][None], domain, (row,))
            logits = stream.logits(one, states[number, mask][None])[0, :-1].float()
            target = one.ids[0, 1:].to(logits.device)
            loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
            yield SampleLoss(row, float(loss), len(target))
