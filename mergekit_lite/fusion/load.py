"""Models that are to be fused, loaded from folders whose tokenizers are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.fusion.processor import FusedLogits, Pair
from mergekit_lite.sources import resolve
from mergekit_lite.tokenizer import Tokens, read_tokens


@dataclass(frozen=True)
class Fusion:
    """A large model, and the small ones that it follows.

    Attributes:
        large: a causal language model of transformers.
        pairs: the small models.
        vocabulary: number of tokens that all of them share.
        highest: the largest dynamic strength.
    """

    large: Any
    pairs: tuple[Pair, ...]
    vocabulary: int
    highest: float = 2.0

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Any:
        """Return what `large.generate` returns with these options, from fused distributions.

        Args:
            input_ids: (rows, tokens), padded on the left.
            attention_mask: of the same shape; None where there is no padding.
            options: of `generate`; own logits processors run before the fusion.
        """
        fused = FusedLogits(
            self.pairs, attention_mask, vocabulary=self.vocabulary, highest=self.highest
        )
        processors = [*options.pop("logits_processor", ()), fused]
        return self.large.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            logits_processor=processors,
            **options,
        )


def fuse(
    large: str,
    pairs: Sequence[tuple[str, str]],
    strength: float | Literal["dynamic"] | Sequence[float | Literal["dynamic"]] = "dynamic",
    *,
    highest: float = 2.0,
    **loading: Any,
) -> Fusion:
    """Load a large model and pairs of small ones, before and after tuning.

    Args:
        large: a model as a recipe names it, such as a folder or `zoo:NAME`.
        pairs: base and tuned small model of each pair.
        strength: beta of emulated fine-tuning, or `dynamic`; one for all pairs or one for each.
        highest: the largest dynamic strength.
        loading: options of `AutoModelForCausalLM.from_pretrained`, such as `dtype` or
            `device_map`.

    Raises:
        RecipeError: tokenizers differ, all differences at once, or one cannot be read.
        SourceError: a model is not there.
    """
    from transformers import AutoModelForCausalLM

    strengths = [strength] * len(pairs) if isinstance(strength, str | float | int) else strength
    if len(strengths) != len(pairs):
        raise RecipeError(f"{len(strengths)} strengths for {len(pairs)} pairs of models")
    names = dict.fromkeys([large, *(name for pair in pairs for name in pair)])
    roots = {n: resolve(n, relative_to=Path(), kind="checkpoint").root for n in names}
    vocabulary = require_same_tokens(roots)
    models = {
        name: AutoModelForCausalLM.from_pretrained(root, **loading).eval()
        for name, root in roots.items()
    }
    made = tuple(
        Pair(models[base], models[tuned], one)
        for (base, tuned), one in zip(pairs, strengths, strict=True)
    )
    return Fusion(models[large], made, vocabulary, highest)


def require_same_tokens(folders: Mapping[str, Path]) -> int:
    """Check that models have the same tokens under the same ids; return how many.

    Args:
        folders: by name, the first of them the one that the others are compared with.

    Raises:
        RecipeError: every model whose tokens are others, with one that differs.
    """
    found = {name: read_tokens(folder) for name, folder in folders.items()}
    problems = [
        Problem("has no tokenizer that can be read", name, "add its tokenizer.json")
        for name, tokens in found.items()
        if tokens is None
    ]
    known = {name: tokens for name, tokens in found.items() if tokens is not None}
    (first, wanted), *others = known.items() if known else (("", None),)
    for name, tokens in others:
        if wanted is not None and (what := _difference(tokens, wanted, first)):
            hint = "logits can only be fused of models of one tokenizer"
            problems.append(Problem(what, name, hint))
    if problems:
        raise RecipeError(problems)
    return wanted.highest + 1 if wanted else 0


def _difference(tokens: Tokens | None, wanted: Tokens, name: str) -> str:
    """Return how the tokens of a model differ from those wanted; empty where they do not."""
    own = tokens.by_id if tokens else {}
    for number in sorted(own.keys() | wanted.by_id.keys()):
        mine, theirs = own.get(number), wanted.by_id.get(number)
        if mine != theirs:
            return f"token {number} is {mine!r}, of `{name}` it is {theirs!r}"
    return ""
