"""A logits processor that moves one model by what tuning did to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import LogitsProcessor

from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.fusion.follower import Follower
from mergekit_lite.fusion.rules import fused_log_probabilities, matching_alpha


@dataclass(frozen=True)
class Pair:
    """A small model before and after tuning.

    Attributes:
        base: before; a causal language model of transformers.
        tuned: after; of the same vocabulary.
        strength: beta of emulated fine-tuning, or `dynamic`: found anew for each token.
    """

    base: Any
    tuned: Any
    strength: float | Literal["dynamic"] = 1.0


class FusedLogits(LogitsProcessor):  # type: ignore[misc]
    """Turns a large model's scores into those of log p_large + alpha (log p_tuned - log p_base).

    For `model.generate(..., logits_processor=LogitsProcessorList([FusedLogits(pairs)]))`. Make one
    for each call; the small models keep a cache of the text so far, also through beam search.
    With several pairs their shifts add up, and each dynamic strength is found by its own identity.

    Args:
        pairs: the small models.
        attention_mask: of the prompts, if there is padding, which must be on the left.
        vocabulary: tokens that the tokenizer knows, where models have padded their last matrix to
            different lengths; entries behind it become impossible. None: all must be equally long.
        highest: the largest dynamic strength.

    Attributes:
        alphas: for each token so far, the strength of each pair, (rows, 1) where it is dynamic.

    Raises:
        RecipeError: models know different numbers of tokens.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        attention_mask: Tensor | None = None,
        *,
        vocabulary: int | None = None,
        highest: float = 2.0,
    ) -> None:
        self.pairs, self.vocabulary, self.highest = tuple(pairs), vocabulary, highest
        self._followers = [
            (Follower(pair.base, attention_mask), Follower(pair.tuned, attention_mask))
            for pair in pairs
        ]
        self.alphas: list[list[Tensor | float]] = []
        sizes = {
            f"{name} of pair {number}": width_of(model)
            for number, pair in enumerate(pairs, 1)
            for name, model in (("base", pair.base), ("tuned", pair.tuned))
        }
        require_same_width(sizes, vocabulary)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return fused log probabilities for scores (rows, tokens) that follow `input_ids`."""
        widths = {"the large model": scores.shape[-1]}
        if self.pairs:
            widths["the small models"] = width_of(self.pairs[0].base)
        require_same_width(widths, self.vocabulary)
        width = self.vocabulary or scores.shape[-1]
        large, shifts, alphas = scores[:, :width], [], []
        for pair, (base, tuned) in zip(self.pairs, self._followers, strict=True):
            before = base.scores(input_ids)[:, :width].to(scores.device)
            after = tuned.scores(input_ids)[:, :width].to(scores.device)
            shifts.append(after.log_softmax(-1) - before.log_softmax(-1))
            dynamic = pair.strength == "dynamic"
            alphas.append(
                matching_alpha(large, after, before, self.highest)
                if dynamic
                else float(pair.strength)
            )
        self.alphas.append(alphas)
        fused = scores.new_full(scores.shape, float("-inf"), dtype=large.float().dtype)
        fused[:, :width] = fused_log_probabilities(large, shifts, alphas)
        return fused


def width_of(model: Any) -> int:
    """Return how many tokens a model gives scores for."""
    head = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def require_same_width(sizes: dict[str, int], vocabulary: int | None) -> None:
    """Refuse models that know different numbers of tokens.

    Args:
        sizes: entries of the last matrix by model.
        vocabulary: number of tokens that the models share, whatever they have beyond; None if
            nothing is known of their tokenizers.

    Raises:
        RecipeError: they differ, or one has fewer than the vocabulary.
    """
    if vocabulary is None and len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise RecipeError(
            f"the models know different numbers of tokens: {listed}",
            hint="fuse models of one tokenizer; if only the padding differs, give `vocabulary`, or"
            " load them by `mergekit_lite.fusion.fuse`, which compares tokenizers",
        )
    short = [
        Problem(f"{name} knows {size:,} tokens, the vocabulary has {vocabulary:,}")
        for name, size in sizes.items()
        if vocabulary is not None and size < vocabulary
    ]
    if short:
        raise RecipeError(short)
