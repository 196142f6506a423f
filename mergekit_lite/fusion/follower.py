"""A small model that reads along while another one generates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Follower:
    """Says what a model would say next, and computes each token of a text only once.

    Rows that a beam search has reordered are reordered in the cache; a text that does not go on
    from the last one begins a new cache.

    Args:
        model: a causal language model of transformers.
        mask: (rows, tokens) of the prompts, 0 where there is padding on the left; None where there
            is none.
    """

    def __init__(self, model: Any, mask: Tensor | None = None) -> None:
        self.model, self.mask = model, mask
        self.fed = 0
        self._forget()

    def _forget(self) -> None:
        self._cache: Any = None
        self._seen = torch.zeros((0, 0), dtype=torch.long)

    @torch.no_grad()
    def scores(self, ids: Tensor) -> Tensor:
        """Return the logits of the token after each row of `ids` (rows, tokens): (rows, tokens)."""
        device = next(self.model.parameters()).device
        ids = ids.to(device)
        known = self._known(ids)
        if known is None:
            self._forget()
        elif known.numel():
            self._cache.reorder_cache(known)
        start = 0 if self._cache is None else self._seen.shape[1]
        mask = self._whole_mask(ids)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:]
        self.fed += ids.shape[0] * (ids.shape[1] - start)
        out = self.model(
            input_ids=ids[:, start:],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache, self._seen = out.past_key_values, ids.clone()
        last: Tensor = out.logits[:, -1]
        return last.float()

    def _known(self, ids: Tensor) -> Tensor | None:
        """Return the cached row that each row goes on from, none to leave all where they are.

        None where some row goes on from none of them.
        """
        length = self._seen.shape[1]
        if self._cache is None or ids.shape[1] <= length:
            return None
        before = ids[:, :length]
        if before.shape == self._seen.shape and torch.equal(before, self._seen):
            return torch.empty(0, dtype=torch.long, device=ids.device)
        same = (before[:, None] == self._seen[None]).all(-1)
        if len(before) != len(self._seen) or not bool(same.any(-1).all()):
            return None
        return same.int().argmax(-1)

    def _whole_mask(self, ids: Tensor) -> Tensor:
        """Return the mask of prompts and of what has been generated; beams share their prompt's."""
        if self.mask is None:
            return torch.ones_like(ids)
        mask = self.mask.to(ids.device, torch.long)
        if len(mask) != len(ids):
            mask = mask.repeat_interleave(len(ids) // len(mask), 0)
        grown = ids.shape[1] - mask.shape[1]
        return torch.cat([mask, mask.new_ones((len(ids), grown))], 1)
