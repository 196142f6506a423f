"""mergekit's rule: hidden states between layers at the last token of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mergekit_lite.moe.gates._measure import Topic, topics_of
from mergekit_lite.moe.gates._spec import GateRequest, Gates, gate
from mergekit_lite.ops._parameters import Doc

if TYPE_CHECKING:
    from torch import Tensor


def hidden_rows(positive: Sequence[Tensor], negative: Sequence[Tensor | None]) -> Tensor:
    """Return rows of norm 1 from hidden states, as mergekit computes them, (layers, experts, d).

    Args:
        positive: (layers, prompts, d) of each expert's prompts.
        negative: the same of its negative prompts; None where there are none.
    """
    import torch

    rows = []
    for states, other in zip(positive, negative, strict=True):
        mean = states.sum(dim=1) / states.shape[1]
        if other is not None:
            mean -= other.sum(dim=1) / other.shape[1]
        mean /= mean.norm(p=2, dim=-1, keepdim=True).clamp(min=1e-8)
        rows.append(mean)
    return torch.stack(rows, dim=1)


@gate(title="Hidden states of prompts", needs="prompts")
def hidden(
    request: GateRequest,
    *,
    average: Annotated[bool, Doc("the mean over all tokens in place of the last")] = False,
) -> Gates:
    """Point each row where the base's hidden states are at the last token of the expert's prompts.

    The mean over prompts, less that over negative prompts, at norm 1, in bf16: mergekit's `hidden`.
    These are the inputs of decoder layers, before attention and norm, and not what routers see:
    it is here because recipes ask for it, and `ridge` routes far better.
    """
    positive = topics_of(request.experts, request.texts)
    wrong = [
        Topic(index, "", tuple(expert.get("negative", ())))
        for index, expert in enumerate(request.experts)
    ]
    asked = [*positive, *(topic for topic in wrong if topic.prompts)]
    states = request.measured().last_states(asked, average=average)
    found = iter(states[len(positive) :])
    negative = [next(found) if topic.prompts else None for topic in wrong]
    rows = hidden_rows(states[: len(positive)], negative).float().numpy()
    return Gates({layer: rows[layer] for layer in request.routers})
