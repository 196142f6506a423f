"""The Python interface to adapters that are put together into one folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_lite.engine.events import Event
    from mergekit_lite.sources import Model


def xlora_folder(
    base: str,
    adapters: Sequence[str],
    out: str | os.PathLike[str],
    *,
    layerwise: bool = False,
    top_k: int | None = None,
    temperature: float = 1.0,
    overwrite: bool = False,
    emit: Callable[[Event], None] | None = None,
) -> list[str]:
    """Write adapters under an untrained X-LoRA classifier; see `adapters.xlora`.

    Raises:
        RecipeError, SourceError, DataError: models that cannot be had or do not go together.
    """
    from mergekit_lite.adapters.xlora import xlora_folder as write

    return write(
        *_with_adapters(base, adapters), Path(out), layerwise=layerwise, top_k=top_k,
        temperature=temperature, overwrite=overwrite, emit=emit or _ignore,
    )  # fmt: skip


def arrow_folder(
    base: str,
    adapters: Sequence[str],
    out: str | os.PathLike[str],
    *,
    general: Sequence[str] = (),
    top_k: int = 3,
    temperature: float = 1.0,
    overwrite: bool = False,
    emit: Callable[[Event], None] | None = None,
) -> list[str]:
    """Write adapters as PEFT's Arrow wants them; see `adapters.arrow`.

    Raises:
        RecipeError, SourceError, DataError: models that cannot be had or do not go together.
    """
    from mergekit_lite.adapters.arrow import arrow_folder as write

    model, found = _with_adapters(base, [*adapters, *general])
    return write(
        model, found[: len(adapters)], Path(out), general=found[len(adapters) :], top_k=top_k,
        temperature=temperature, overwrite=overwrite, emit=emit or _ignore,
    )  # fmt: skip


def _with_adapters(base: str, adapters: Sequence[str]) -> tuple[Model, list[Model]]:
    from mergekit_lite.sources import resolve

    found = [resolve(adapter, relative_to=Path(), kind="adapter") for adapter in adapters]
    return resolve(base, relative_to=Path()), found


def _ignore(event: Event) -> None:
    pass
