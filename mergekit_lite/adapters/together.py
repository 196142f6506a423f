"""Several adapters of one base in one folder: what they are, and whether they go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_lite.checkpoint import Adapter, LoraFactors
from mergekit_lite.checkpoint.lora_place import on_base
from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.plan.configs import model_type
from mergekit_lite.plan.names import few

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


@dataclass(frozen=True)
class Member:
    """One of several adapters.

    Attributes:
        name: of its folder.
        model: the adapter, opened.
        pairs: its factors by the module that they change.
    """

    name: str
    model: Model
    pairs: Mapping[str, LoraFactors]


def members_of(base: Model, adapters: Sequence[Model], *, linear: bool) -> list[Member]:
    """Return adapters by folder names of their own.

    Args:
        base: the model that they change.
        adapters: in order.
        linear: whether they may change linear layers alone, not embeddings.

    Raises:
        RecipeError: what is given is no adapter, is for another base, or holds more than plain
            factors; all that is wrong.
    """
    problems: list[Problem] = []
    found = []
    for name, model in zip(_names(adapters), adapters, strict=True):
        if model.adapter is None:
            problems.append(Problem(f"`{model.reference}` is no adapter"))
            continue
        placed = on_base(model.adapter, base.header.tensors, model_type(base.config))
        problems += _problems(model.reference, placed, base, linear)
        pairs = {weight.removesuffix(".weight"): own for weight, own in placed.factors.items()}
        found.append(Member(name, model, pairs))
    if problems:
        raise RecipeError(problems)
    return found


def _names(adapters: Sequence[Model]) -> list[str]:
    """Return a folder name for each adapter: the last part of its reference, and a number."""
    last = [Path(model.reference.partition("@")[0].rpartition(":")[2]).name for model in adapters]
    names = []
    for number, name in enumerate(last):
        plain = name or "adapter"
        names.append(plain if last.count(name) == 1 else f"{plain}-{1 + last[:number].count(name)}")
    return names


def _problems(reference: str, adapter: Adapter, base: Model, linear: bool) -> list[Problem]:
    tensors = base.header.tensors
    odd = [
        f"{name} ({pair.kind})"
        for name, pair in adapter.factors.items()
        if not pair.is_plain or (linear and ".lora_embedding_" in pair.a)
    ]
    odd += [f"{name} (a whole tensor)" for name in adapter.replaced]
    strangers = [
        name
        for name in adapter.factors
        if name not in tensors or adapter.shape(name) != tensors[name].shape
    ]
    found = []
    if odd:
        what = "linear layers" if linear else "linear layers and embeddings"
        found.append(
            Problem(
                f"`{reference}` holds more than factors of {what}: {few(odd)}",
                hint="merge it into the base, then `mergekit-lite extract-lora`",
            )
        )
    if strangers:
        found.append(
            Problem(
                f"`{reference}` does not fit the base: {few(strangers)}",
                hint="give the base that it was trained on",
            )
        )
    if not adapter.factors:
        found.append(Problem(f"`{reference}` holds no factors"))
    return found


def base_name(base: Model) -> str:
    """Return what adapters of a base call it."""
    named = (base.config or {}).get("_name_or_path")
    return named if isinstance(named, str) and named else base.reference
