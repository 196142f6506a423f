"""Tokens spread evenly over the texts, and what single experts say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Spread:
    """Picks tokens at even distances, however they are put into batches.

    Args:
        tokens: of all texts.
        most: tokens that are picked, about.
    """

    def __init__(self, tokens: int, most: int) -> None:
        self._stride = max(-(-tokens // most), 1)
        self._seen = 0

    def places(self, tokens: int) -> Tensor:
        """Return which of the next tokens are picked."""
        import torch

        first = -self._seen % self._stride
        self._seen += tokens
        return torch.arange(first, tokens, self._stride)


def said_by(module: Any, expert: int, hidden: Tensor, like: Tensor) -> Tensor:
    """Return what one expert says of tokens, whether they chose it or not, in fp32.

    Args:
        module: of all experts.
        expert: its number.
        hidden: (tokens, d).
        like: choices of the model, for their dtype and device.
    """
    import torch

    chosen = torch.full((len(hidden), 1), expert, dtype=like.dtype, device=like.device)
    one = torch.ones((len(hidden), 1), dtype=hidden.dtype, device=hidden.device)
    found: Tensor = module(hidden, chosen, one).float()
    return found
