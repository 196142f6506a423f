"""From a reference in a recipe to the model it stands for."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from mergekit_lite.errors import RecipeError, SourceError
from mergekit_lite.registered import entry_points
from mergekit_lite.sources._types import Kind, Model, Source
from mergekit_lite.sources.file import FileSource
from mergekit_lite.sources.local import LocalSource

GROUP = "mergekit_lite.sources"
"""Entry point group under which other packages register sources."""

_WORDS = {"checkpoint": "a model", "adapter": "a LoRA adapter", "expert": "a model"}


Wanted = Kind | Literal["expert"]
"""What a reference must stand for; `expert` is a checkpoint or a patch of one."""


def resolve(reference: str, *, relative_to: Path, kind: Wanted | None = None) -> Model:
    """Return the model that `reference` stands for, with its headers read.

    Args:
        reference: a folder, a `.safetensors` file, `zoo:NAME`, or what a registered source knows.
        relative_to: folder that relative paths start from: that of the recipe.
        kind: what it must be; None accepts anything.

    Raises:
        SourceError: it is missing or unreachable.
        RecipeError: it cannot be merged, or it is not of that kind.
        DataError: it is damaged.
    """
    try:
        model = source_for(reference).resolve(reference, relative_to)
    except OSError as error:
        raise SourceError(
            f"cannot read `{reference}`: {error}", hint="check that you may read all of it"
        ) from error
    if kind is None or kind == model.kind:
        return model
    if model.kind == "patch":
        if kind == "expert":
            return model
        base = (model.adapter.base_model if model.adapter else "") or "its base"
        raise RecipeError(
            f"`{reference}` is a patch of {base}, not {_WORDS[kind]}",
            hint=f"write `model: {reference}` for an expert, or make the model it stands for:"
            f" `mergekit-lite apply {reference} --base BASE -o DIR`",
        )
    if kind == "patch":
        raise RecipeError(
            f"`{reference}` is {_WORDS[model.kind]}, not a patch",
            hint="`mergekit-lite compress` makes patches",
        )
    if model.kind == "adapter":
        base = (model.adapter.base_model if model.adapter else "") or "its base model"
        raise RecipeError(
            f"`{reference}` is a LoRA of {base}, not a model",
            hint=f"write `base: {base}` and, for the expert, `lora: {reference}`",
        )
    if kind == "adapter":
        raise RecipeError(
            f"`{reference}` is a whole model, not a LoRA adapter",
            hint=f"write `model: {reference}`",
        )
    return model


def source_for(reference: str) -> Source:
    """Return the first source that accepts `reference`: registered ones, then the built-in."""
    for source in registered():
        if source.accepts(reference):
            return source
    if reference.startswith("zoo:"):
        # Imported here because few recipes need it.
        from mergekit_lite.sources.zoo import ZooSource

        return ZooSource()
    return next(s for s in (FileSource(), LocalSource()) if s.accepts(reference))


@cache
def registered() -> tuple[Source, ...]:
    """Return the sources of other installed packages, by name.

    Raises:
        SourceError: one of them cannot be loaded.
    """
    found = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            loaded = entry.load()
            found.append(loaded() if isinstance(loaded, type) else loaded)
        except Exception as error:
            raise SourceError(
                f"the source `{entry.name}` ({entry.value}) cannot be loaded: {error}",
                hint="update or remove the package that registers it",
            ) from error
    return tuple(found)
