"""The Python interface: load a recipe, plan it, run it, or merge tensors in hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.adapters.extract import Extraction
    from mergekit_lite.adapters.fold import Loss
    from mergekit_lite.adapters.split import Method
    from mergekit_lite.engine.events import Event
    from mergekit_lite.engine.options import Report
    from mergekit_lite.plan.types import Plan
    from mergekit_lite.recipe import Recipe
    from mergekit_lite.recipe.importing import Imported
    from mergekit_lite.sources import Model

Source = str | os.PathLike[str] | Mapping[str, Any]
"""A recipe's path, or its content as plain data."""


def load(recipe: Source, set: Sequence[str] = (), *, models: bool = False) -> Recipe:
    """Read and check a recipe, without looking at any model.

    Args:
        recipe: path of a YAML file, or the same content as a mapping.
        set: changes such as `steps.0.ties.density=0.3`, applied last.
        models: where the recipe is wrong, look at the headers of its models too, so that their
            problems are told along with its own.

    Raises:
        RecipeError: all problems of the recipe, each with its line.
        DataError: the recipe is wrong, and with `models` a header is damaged as well.
    """
    from mergekit_lite.errors import RecipeError
    from mergekit_lite.recipe import load as load_recipe

    source = recipe if isinstance(recipe, Mapping) else Path(recipe)
    try:
        return load_recipe(source, set)
    except RecipeError as error:
        if not models:
            raise
        from mergekit_lite.plan.build import with_models
        from mergekit_lite.recipe import draft

        raise with_models(error, draft(source, set)) from None


def import_recipe(recipe: str | os.PathLike[str], folder: str | os.PathLike[str] = ".") -> Imported:
    """Return a mergekit recipe as the text of one in this package's language.

    Args:
        recipe: path of the file.
        folder: where the text will stand, from which its paths are spelt.

    Returns:
        Its `text`, and `notes` on what was left out or is understood otherwise.

    Raises:
        RecipeError: all problems of the recipe, or it is no recipe of mergekit's.
    """
    from mergekit_lite.recipe.importing import import_recipe as convert

    return convert(Path(recipe), Path(folder))


def plan(recipe: Recipe | Source) -> Plan:
    """Decide every output tensor from the recipe and the headers of its models.

    Raises:
        RecipeError: all problems that names, shapes and dtypes show.
        SourceError: a model is missing.
        DataError: a header is damaged.
    """
    from mergekit_lite.plan.build import build
    from mergekit_lite.recipe import Recipe

    return build(recipe if isinstance(recipe, Recipe) else load(recipe, models=True))


def run(
    recipe: Plan | Recipe | Source,
    out: str | os.PathLike[str],
    *,
    emit: Callable[[Event], None] | None = None,
    **options: Any,
) -> Report:
    """Merge into the folder `out`, which appears complete or not at all.

    An interrupted run leaves `OUT.partial`; the same call takes it up again.

    Args:
        recipe: what to merge: a plan, a recipe, or a recipe's path or content.
        out: folder to make.
        emit: called with the events of the run, from any thread.
        options: fields of `mergekit_lite.engine.options.Options`: `threads`, `max_memory` (bytes),
            `device` (`cpu`, `cuda` or `auto`), `fresh`, `overwrite`, `allow_nonfinite`,
            `executor` (the name of a registered one).

    Raises:
        RecipeError: the recipe, the inputs' shapes or the output folder do not fit.
        DataError: an input is corrupt or not finite.
        ResourceError: disk or memory do not suffice.
        SourceError: a model is missing.
        Interrupted: stopped by a signal.
    """
    from mergekit_lite.engine.options import Options
    from mergekit_lite.export.merge import merge
    from mergekit_lite.plan.build import prepare
    from mergekit_lite.plan.types import Plan
    from mergekit_lite.recipe import Recipe

    chosen = Options(**options)
    if isinstance(recipe, Plan):
        return merge(recipe, open_inputs(recipe), Path(out), chosen, emit or _ignore)
    loaded = recipe if isinstance(recipe, Recipe) else load(recipe, models=True)
    ready, found = prepare(loaded)
    return merge(ready, found, Path(out), chosen, emit or _ignore)


def add_expert(
    routed: str | os.PathLike[str],
    expert: str,
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    lora: bool = False,
    prompts: Sequence[str] = (),
    data: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    save_recipe: str | os.PathLike[str] | None = None,
    emit: Callable[[Event], None] | None = None,
    **options: Any,
) -> Report:
    """Add an expert to a routed model whose gates are `ridge`, without the texts of the others.

    Args:
        routed: folder of the model, with the sums that its run left beside it.
        expert: a model that was tuned from the same base.
        out: folder to make.
        name: of the expert; by default the last part of its path.
        lora: the expert is an adapter of the base.
        prompts: texts of the kind that it is for.
        data: a file of such texts, `.txt` or `.jsonl`.
        folder: from which the recipe of `routed` names its models; by default the current one.
        save_recipe: file into which the recipe goes that is run.
        emit: called with events, from any thread.
        options: as `run` takes them.

    Raises:
        SourceError: the folder lacks what a run leaves beside such a model, or a model is missing.
        RecipeError: its gates are of another kind, the name is in use, or the expert does not fit.
        DataError: base or experts are no longer those that it was made of.
        ResourceError, Interrupted: as `run`.
    """
    from mergekit_lite.engine.options import Options
    from mergekit_lite.export.add_expert import (
        name_of,
        recipe_text,
        recipe_with,
        require_same_inputs,
    )
    from mergekit_lite.export.merge import merge
    from mergekit_lite.plan.build import prepare

    where = Path(routed).expanduser()
    content = recipe_with(
        where,
        _from_here(expert),
        name=name or name_of(expert),
        lora=lora,
        prompts=prompts,
        data=None if data is None else str(Path(data).expanduser().resolve()),
    )
    recipe = load(content).spelt_from(Path(folder or ".").expanduser().resolve())
    if save_recipe is not None:
        Path(save_recipe).expanduser().write_text(recipe_text(content), encoding="utf-8")
    ready, found = prepare(recipe)
    require_same_inputs(where, ready, found)
    return merge(ready, found, Path(out), Options(**options), emit or _ignore)


def extract_lora(
    model: str,
    base: str,
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    exact: bool = False,
    dtype: str = "float32",
    threads: int | None = None,
    overwrite: bool = False,
    emit: Callable[[Event], None] | None = None,
) -> Extraction:
    """Write the adapter that turns `base` into `model`, as nearly as its rank allows.

    Args:
        model: the fine-tuned model: a folder, a `.safetensors` file or `zoo:NAME`.
        base: the model it was tuned from.
        out: folder to make.
        rank: of every module; 32 by default.
        energy: in place of a rank: the least one that holds this part of a delta's sum of squares.
        max_rank: the largest that `energy` may choose; by default the matrix's own.
        exact: the full SVD in place of the randomised one.
        dtype: of what is stored: `float32`, `float16` or `bfloat16`.
        threads: rows computed at a time; one for each core by default.
        overwrite: replace a folder that is there.
        emit: called with events, from any thread.

    Raises:
        RecipeError: the models do not fit each other, a tensor differs that has no place in an
            adapter, or the output folder does not fit.
        DataError: an input is corrupt or not finite, or nothing differs.
        SourceError: a model is missing.
    """
    from mergekit_lite.adapters.extract import extract
    from mergekit_lite.compress.low_rank import Wanted
    from mergekit_lite.plan.build import prepare

    most = (max_rank or 1 << 30) if energy is not None else rank or 32
    recipe = {"base": base, "experts": {"tuned": {"model": model}}, "steps": ["task_arithmetic"]}
    ready, found = prepare(load(recipe, models=True))
    return extract(
        ready,
        found,
        Path(out),
        Wanted(most, energy, exact),
        dtype=dtype,
        threads=threads,
        overwrite=overwrite,
        emit=emit or _ignore,
    )


def fold_adapters(
    base: str,
    adapters: Sequence[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "bfloat16",
    overwrite: bool = False,
    emit: Callable[[Event], None] | None = None,
) -> list[Loss]:
    """Fold adapters into a base one after the other, rounding each time, and tell the loss of each.

    Args:
        base: the model that the first adapter was trained on.
        adapters: folded in this order.
        out: folder of the model to make.
        dtype: what the weights are rounded to after each fold, and stored as.
        overwrite: replace a folder that is there.
        emit: called with the events of the run, from any thread.

    Raises:
        RecipeError, DataError, ResourceError, SourceError, Interrupted: as `run`.
    """
    from mergekit_lite.adapters.fold import losses
    from mergekit_lite.plan.build import prepare

    recipe = {
        "base": base,
        "experts": {f"fold{n}": {"lora": lora} for n, lora in enumerate(adapters, start=1)},
        "steps": [{"lora_fold": {"dtype": dtype}}],
        "output": {"dtype": dtype},
    }
    loaded = load(recipe, models=True)
    run(loaded, out, overwrite=overwrite, emit=emit)
    return losses(*prepare(loaded), dtype)


def rose_mask(
    adapter: str, out: str | os.PathLike[str], *, keep: float = 0.1, overwrite: bool = False
) -> dict[str, float]:
    """Write an adapter with the largest entries of each row of A and each column of B alone.

    Args:
        adapter: the adapter to cut down.
        out: folder to make.
        keep: part of each row of A, and of each column of B, that is kept.
        overwrite: replace a folder that is there.

    Returns:
        The share of kept entries by tensor.

    Raises:
        RecipeError: it is no adapter, `keep` is out of range, or the output folder does not fit.
        SourceError: there is no adapter.
    """
    from mergekit_lite.adapters.mask import rose_mask as mask
    from mergekit_lite.sources import resolve

    found = resolve(adapter, relative_to=Path(), kind="adapter")
    return mask(found, Path(out), keep, overwrite=overwrite, emit=_ignore)


def corda_split(
    model: str,
    grams: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int = 32,
    method: str = "ipm",
    overwrite: bool = False,
) -> list[str]:
    """Write the adapter that training starts from in CorDA; see `adapters.split`.

    Args:
        model: the model to split.
        grams: a safetensors file with an (in x in) matrix under the name of each weight.
        out: folder of the adapter.
        rank: of every module.
        method: `ipm` or `kpm`.
        overwrite: replace a folder that is there.

    Returns:
        The modules that were split.

    Raises:
        RecipeError: no such method, matrices do not fit, or the output folder does not fit.
        DataError: a matrix is not finite.
    """
    from mergekit_lite.adapters.split import corda_split as split
    from mergekit_lite.errors import RecipeError
    from mergekit_lite.sources import resolve

    if method not in ("ipm", "kpm"):
        raise RecipeError(f"`method` is `{method}`, not `ipm` or `kpm`")
    found = resolve(model, relative_to=Path(), kind="checkpoint")
    way: Method = "ipm" if method == "ipm" else "kpm"
    return split(
        found, Path(grams), Path(out), rank=rank, method=way, overwrite=overwrite, emit=_ignore
    )


def open_inputs(plan: Plan) -> dict[str, Model]:
    """Return the models that a plan names, found again by its references.

    Raises:
        SourceError, RecipeError, DataError: one of them has gone, or is not what it was.
    """
    from mergekit_lite.plan.stages import reopened
    from mergekit_lite.sources import resolve

    folder = Path(plan.folder)
    return reopened(
        plan,
        plan.stages,
        lambda source: resolve(source.reference, relative_to=folder, kind=source.kind),
    )


def _from_here(reference: str) -> str:
    """Return a reference as it is, or what is on this disk by its whole path."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference


def _ignore(event: Event) -> None:
    """Take an event and say nothing."""


def merge_tensors(
    op: str, deltas: Sequence[Tensor] | Mapping[str, Tensor], **params: Any
) -> Tensor:
    """Merge tensors in memory by one op or preset, without a recipe or files.

    Args:
        op: name of an op or a preset; `mergekit-lite ops list` shows them.
        deltas: differences from the base, one an expert, by name or in order.
        params: the op's parameters (`lambda_` stands for `lambda`), and `base`, `weights`, `seed`,
            `name`, `layer`, `layers` where they matter.

    Returns:
        The merged tensor in fp32: a delta, or a weight where `base` is given.

    Raises:
        RecipeError: no such op or parameter, a value out of range, a wrong number of inputs.
    """
    from mergekit_lite.ops._tensors import merge_tensors as merge

    return merge(op, deltas, **params)
