"""What a source hands over: a model that is described in full and not yet read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from mergekit_lite.checkpoint import Adapter, Header, Reader
from mergekit_lite.errors import Problem

if TYPE_CHECKING:
    from mergekit_lite.plan.types import Plan

Kind = Literal["checkpoint", "adapter", "patch"]


@dataclass(frozen=True)
class Model:
    """One model or adapter that a reference of the recipe stands for.

    Attributes:
        reference: as the recipe writes it.
        root: resolved folder or file; equal for all spellings of one place.
        kind: `checkpoint` for whole weights, `adapter` for a LoRA, `patch` for a compressed task
            vector.
        revision: commit of a repository, or empty.
        header: all tensors; of an adapter or a patch those of its own file, of a quantised
            checkpoint the floats that its codes stand for.
        config: `config.json`, or None where there is none.
        companions: files that go with the weights (tokenizer, templates, config, code), as paths
            relative to `root`.
        adapter: what it adds to its base, when `kind` is `adapter` or `patch`.
        open: opens a weight file by its name in `header.files`.
        quantization: name of the format of quantised weights, empty for plain ones.
        stage: name of the stage whose result it is; root and companions are those of the stage's
            base.
        plan: what that stage does (a `Plan`).
        parts: the stage's own models.
        unreadable: why quantised weights cannot be read as floats; each begins with `quantised`.
        task: of a store, the task that this is; empty for all else.
        stored: the tensors of a quantised checkpoint as they are on disk.
    """

    reference: str
    root: Path
    kind: Kind
    revision: str
    header: Header
    config: Mapping[str, Any] | None
    companions: tuple[Path, ...]
    adapter: Adapter | None
    open: Callable[[str], Reader] = field(repr=False, compare=False)
    quantization: str = ""
    unreadable: tuple[Problem, ...] = ()
    stored: Header | None = field(default=None, repr=False, compare=False)
    task: str = ""
    stage: str = ""
    plan: Plan | None = field(default=None, repr=False, compare=False)
    parts: Mapping[str, Model] = field(default_factory=dict, repr=False, compare=False)


@runtime_checkable
class Source(Protocol):
    """A place where models come from.

    Third parties register a class or an instance under the entry point group
    `mergekit_lite.sources`. They are asked before the built-in sources; the first that accepts a
    reference resolves it.
    """

    name: str

    def accepts(self, reference: str) -> bool:
        """Return whether this source is the one for `reference`, by its spelling alone."""

    def resolve(self, reference: str, relative_to: Path) -> Model:
        """Return the model, with its headers read.

        Args:
            reference: as the recipe writes it.
            relative_to: folder that relative paths start from: that of the recipe.

        Raises:
            SourceError: it is missing, gated or unreachable.
            RecipeError, DataError: it cannot be merged, or it is damaged.
        """
