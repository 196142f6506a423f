"""The Python interface to patches: compressed task vectors, made and applied."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.api import load, run
from mergekit_lite.errors import RecipeError

if TYPE_CHECKING:
    from mergekit_lite.engine.events import Event
    from mergekit_lite.engine.options import Report
    from mergekit_lite.report.patches import PatchSummary

_ONE: Mapping[str, Any] = {"steps": ["task_arithmetic"], "routers": "merge"}
"""A recipe's part by which one expert is compared with its base."""


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
        **_ONE,
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


def compress_together(
    models: Mapping[str, str],
    base: str,
    out: str | os.PathLike[str],
    *,
    bits: int = 2,
    shared_bits: int = 3,
    overwrite: bool = False,
    emit: Callable[[Event], None] | None = None,
) -> dict[str, PatchSummary]:
    """Write a patch for each of several experts, and one file of what they share, in a folder.

    Residual task vector quantisation (Kim et al. 2025, arXiv 2503.06921): the mean of all
    differences is rounded once, and each expert's own difference less that by itself.

    Args:
        models: name -> fine-tuned model; two or more, of one base.
        base: the model they were tuned from.
        out: the folder: `shared.safetensors` and a `NAME.safetensors` for each come into it.
        bits: of an entry of what an expert has of its own: 2, 3, 4 or 8.
        shared_bits: of an entry of what they share.
        overwrite: replace files that are there.
        emit: called with events.

    Returns:
        What each file holds, by name, `shared` among them.

    Raises:
        RecipeError: models, names, parameters or the place do not fit.
        DataError: an input is corrupt or not finite, or the mean is the base.
        SourceError: a model is missing.
    """
    from mergekit_lite.compress import codec_named
    from mergekit_lite.patches.make import compress as make
    from mergekit_lite.patches.mean import mean_recipe, places
    from mergekit_lite.patches.together import compress_beside
    from mergekit_lite.plan.build import prepare
    from mergekit_lite.report.patches import summarise_patch
    from mergekit_lite.sources import resolve

    for model in models.values():
        resolve(model, relative_to=Path(), kind="checkpoint")
    codec = codec_named("tvq")
    own, common = (codec.resolved({"bits": each}) for each in (bits, shared_bits))
    files = places(models, Path(out).expanduser().absolute(), overwrite=overwrite)
    tell = emit or (lambda event: None)
    ready, found = prepare(load(mean_recipe(models, base), models=True))
    make(ready, found, files["shared"], codec, common, overwrite=overwrite, emit=tell)
    shared = resolve(str(files["shared"]), relative_to=Path(), kind="patch")
    for name, model in models.items():
        recipe = {"base": base, "experts": {"tuned": {"model": model}}, **_ONE}
        ready, found = prepare(load(recipe, models=True))
        compress_beside(ready, found, shared, files[name], own, overwrite=overwrite, emit=tell)
    made = {n: resolve(str(file), relative_to=Path(), kind="patch") for n, file in files.items()}
    return {name: summarise_patch(each) for name, each in made.items()}


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
