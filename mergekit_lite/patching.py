"""The Python interface to patches: compressed task vectors, made and applied."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.api import load, run
from mergekit_lite.errors import RecipeError

if TYPE_CHECKING:
    from mergekit_lite.engine.events import Event
    from mergekit_lite.engine.options import Report
    from mergekit_lite.report.patches import PatchSummary


def compress(
    model: str,
    base: str,
    out: str | os.PathLike[str],
    *,
    method: str = "compeft",
    overwrite: bool = False,
    calibration: str | os.PathLike[str] | None = None,
    emit: Callable[[Event], None] | None = None,
    **params: Any,
) -> PatchSummary:
    """Write the patch that turns `base` into `model`, as nearly as a codec can.

    Args:
        model: the fine-tuned model: a folder, a `.safetensors` file or `zoo:NAME`; or the folder
            of a LoRA adapter, of which both factors are compressed.
        base: the model it was tuned from.
        out: the file to make, `NAME.safetensors`.
        method: name of the codec.
        overwrite: replace a file that is there.
        calibration: folder of Gram matrices of the fine-tune, made by `calibrate`, for a codec that
            makes use of them.
        emit: called with events.
        params: of the codec; see `docs/compression.md`.

    Returns:
        What the patch holds: sizes, and errors by layer.

    Raises:
        RecipeError: no such codec or parameter, or models, parameters or the place do not fit.
        DataError: an input is corrupt or not finite, or nothing differs.
        SourceError: a model is missing.
    """
    from mergekit_lite.compress import codec_named, registry
    from mergekit_lite.patches.factored import compress_adapter
    from mergekit_lite.patches.make import compress as make
    from mergekit_lite.plan.build import prepare
    from mergekit_lite.report.patches import summarise_patch
    from mergekit_lite.sources import resolve

    is_adapter = resolve(model, relative_to=Path()).kind == "adapter"
    resolve(model, relative_to=Path(), kind="adapter" if is_adapter else "checkpoint")
    codec = codec_named(method)
    chosen = codec.resolved(params)
    if calibration is not None and not codec.calibrated:
        using = ", ".join(f"`{name}`" for name, one in registry().items() if one.calibrated)
        raise RecipeError(f"`{method}` makes no use of a calibration", hint=f"{using} do")
    if calibration is not None and is_adapter:
        raise RecipeError("an adapter's factors are compressed without a calibration")
    recipe = {
        "base": base,
        "experts": {"tuned": {"lora" if is_adapter else "model": model}},
        "steps": ["task_arithmetic"],
        "routers": "merge",
    }
    ready, found = prepare(load(recipe, models=True))
    options: dict[str, Any] = {
        "overwrite": overwrite,
        "emit": emit or (lambda event: None),
    }
    if is_adapter:
        compress_adapter(ready, found, Path(out), codec, chosen, **options)
    else:
        folder = None if calibration is None else Path(calibration).expanduser()
        make(ready, found, Path(out), codec, chosen, calibration=folder, **options)
    return summarise_patch(resolve(str(out), relative_to=Path(), kind="patch"))


def apply(
    patch: str,
    base: str,
    out: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    emit: Callable[[Event], None] | None = None,
    **options: Any,
) -> Report:
    """Make the model that a patch stands for, in the folder `out`.

    Args:
        patch: the file.
        base: the model that it was made against, to the byte.
        out: folder to make.
        dtype: of the model; that of the base by default.
        emit: called with the events of the run, from any thread.
        options: as `run` takes them.

    Raises:
        RecipeError: it is no patch, or one of another base; tensors that differ are named.
        DataError, ResourceError, SourceError, Interrupted: the patch is damaged, or as `run`.
    """
    from mergekit_lite.patches.apply import recipe_of
    from mergekit_lite.sources import resolve

    resolve(patch, relative_to=Path(), kind="patch")
    return run(recipe_of(patch, base, dtype), out, emit=emit, **options)
