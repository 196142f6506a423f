"""What a model gives for each text at its end: logits of tokens or labels, and a vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.losses import one_by_one
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import Batch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class End:
    """What a model gives for one text.

    Attributes:
        row: index of the text.
        targets: (tokens - 1,) ids that a language model predicts; empty of other models.
        logits: (tokens - 1, vocabulary) of a language model, (1, labels) of one that gives texts
            labels, (0, 0) of others; fp32.
        vector: (width,) mean over all tokens of what enters the head, fp64.
    """

    row: int
    targets: Tensor
    logits: Tensor
    vector: Tensor


def ends(stream: Stream, batches: Sequence[Batch], hidden: Sequence[Tensor]) -> Iterator[End]:
    """Yield what a model gives for every text; what is of one text is in memory at a time.

    Args:
        stream: of the model, with all that is outside its layers in memory.
        batches: what was run.
        hidden: that left the last layer.
    """
    import torch

    skeleton = stream.skeleton
    entered: list[Tensor] = []

    def note(module: Any, inputs: Any, output: Any) -> None:
        entered.append(output[0])

    hook = skeleton.model.base_model.register_forward_hook(note)
    try:
        for row, one, (states,) in one_by_one(batches, hidden):
            found = stream.end(one, states)
            vector = entered.pop()[0].double().mean(0).cpu()
            logits, targets = torch.zeros((0, 0)), one.ids[0, :0]
            if skeleton.head == "labels":
                logits = found.logits.float()
            elif skeleton.head == "language":
                logits, targets = found.logits[0, :-1].float(), one.ids[0, 1:]
            yield End(row, targets.to(logits.device), logits, vector)
    finally:
        hook.remove()
