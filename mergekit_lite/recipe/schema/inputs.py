"""Ops of a chain and the models that go into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from mergekit_lite.recipe.schema.fields import Part, Scope, Weight

BASE = "base"  # the name by which rules and parameters call the base; no expert may bear it


class RecipeStep(Part):
    """One op of a chain and its parameters, as the recipe gives them."""

    op: str
    """Name in the op registry."""
    params: Mapping[str, Any] = {}
    """Scalars, per-expert maps and gradients, not yet resolved."""
    where: SkipJsonSchema[str] = Field("", exclude=True)


Steps = tuple[RecipeStep, ...]


class Expert(Part):
    """One model that is merged into the base."""

    model: str | None = None
    """A fine-tuned model: a folder, a `.safetensors` file or `zoo:NAME`."""
    lora: str | None = None
    """A PEFT LoRA adapter of the base, read lazily."""
    store: str | None = None
    """A store of several fine-tunes, made by `store pack`; `task` says which of them."""
    task: str | None = None
    """The task of the store; the expert's own name where it is not given."""
    weight: Weight | None = None
    """Its weight in the combine: a number, or a list interpolated over depth."""
    steps: Steps = ()
    """Transforms run on this expert before the recipe's shared chain."""
    rename: Mapping[str, str] = {}
    """Names of its tensors -> the base's names for them, where they differ by more than a prefix:
    `{"*.attn.*": "*.self_attn.*"}`; `*` and `?` keep what they stood for. After `regex:` a pattern
    is a regular expression and the replacement may hold `\\1`. The first that fits is applied."""
    scope: Scope = ()
    """Patterns or modules of the base in which this expert has a part, such as
    `model.language_model`; it leaves all else as in the base."""
    where: SkipJsonSchema[str] = Field("", exclude=True)

    @property
    def reference(self) -> str:
        """The model, adapter or task of a store, whichever is given."""
        if self.store:
            return f"{self.store}#{self.task}"
        return self.model or self.lora or ""

    @property
    def key(self) -> str:
        """The key under which it is given."""
        return "store" if self.store else "model" if self.lora is None else "lora"
