"""The two formulas of logit fusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HALVINGS = 40
"""Steps of the search: the strength is then known as finely as fp32 can say it."""


def fused_log_probabilities(
    large: Tensor, shifts: Sequence[Tensor], alphas: Sequence[Tensor | float]
) -> Tensor:
    """Return log p, where p is proportional to p_large * exp(sum of alpha_i * shift_i).

    With one shift, log p_tuned - log p_base of a small model, and alpha = 1 this is emulated
    fine-tuning (arXiv:2310.12962): what tuning the large model would have done is estimated by what
    it did to the small one.

    Args:
        large: scores of the large model, (..., tokens); logits or log probabilities. A token of
            score -inf stays impossible.
        shifts: a tensor of that shape for each pair of small models.
        alphas: strength of each: a number, or a tensor of shape (..., 1).

    Returns:
        fp32, (..., tokens); the exponentials add up to 1.
    """
    total = large.float().log_softmax(-1)
    for shift, alpha in zip(shifts, alphas, strict=True):
        total = total + alpha * shift
    return total.log_softmax(-1)


def matching_alpha(large: Tensor, tuned: Tensor, base: Tensor, highest: float = 2.0) -> Tensor:
    """Return the strength at which the large model moves as far as tuning moved the small one.

    Dynamic logit fusion (arXiv:2406.15480): alpha >= 0 such that KL(fused || large) equals
    KL(tuned || base). The left side is 0 at alpha = 0 and never falls as alpha grows (its slope is
    alpha times the variance of the shift), so halving an interval finds it.

    Args:
        large: scores of the large model, (..., tokens).
        tuned: scores of the tuned small model, (..., tokens), finite.
        base: of the small model before tuning, (..., tokens), finite.
        highest: the largest strength; taken where even it does not move the large model so far.

    Returns:
        fp32, (..., 1). Where the small models agree it is 0.
    """
    import torch

    first, second = tuned.double().log_softmax(-1), base.double().log_softmax(-1)
    start, shift = large.double().log_softmax(-1), first - second
    wanted = divergence(first, second)
    low = torch.zeros_like(wanted)
    high = torch.full_like(wanted, highest)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        short = divergence((start + middle * shift).log_softmax(-1), start) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    reached = divergence((start + highest * shift).log_softmax(-1), start) >= wanted
    found = torch.where(reached, high, torch.full_like(high, highest))
    return torch.where(wanted > 0, found, torch.zeros_like(found)).float()


def divergence(left: Tensor, right: Tensor) -> Tensor:
    """Return KL(left || right) of log probabilities in nats, (..., 1).

    Tokens that are impossible on the left add nothing.
    """
    import torch

    terms = left.exp() * (left - right)
    return torch.where(left == -torch.inf, 0.0, terms).sum(-1, keepdim=True)
