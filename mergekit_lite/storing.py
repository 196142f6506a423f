"""The Python interface to stores: several fine-tunes of one base in one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.api import load, run
from mergekit_lite.errors import Problem, RecipeError, SourceError

if TYPE_CHECKING:
    from mergekit_lite.engine.events import Event
    from mergekit_lite.engine.options import Report
    from mergekit_lite.report.stores import StoreSummary


def pack(
    experts: Mapping[str, str],
    base: str,
    out: str | os.PathLike[str],
    *,
    method: str = "emr",
    overwrite: bool = False,
    emit: Callable[[Event], None] | None = None,
    **params: Any,
) -> StoreSummary:
    """Write the store that turns `base` into each of `experts`, as nearly as a method can.

    Args:
        experts: name of a task -> its fine-tuned model: a folder, a `.safetensors` file or
            `zoo:NAME`.
        base: the model they were tuned from.
        out: the file to make, `NAME.safetensors`.
        method: `emr`, `tall_mask`, `t_switch` or `tsv_compress`.
        overwrite: replace a file that is there.
        emit: called with events.
        params: of the method; see `docs/compression.md`.

    Returns:
        What the store holds: sizes, and errors by task.

    Raises:
        RecipeError: no such method or parameter, or models, names or the place do not fit.
        DataError: an input is corrupt or not finite, or nothing differs or is left of one.
        SourceError: a model is missing.
    """
    from mergekit_lite.compress.stores import method_named
    from mergekit_lite.patches.pack import pack as make
    from mergekit_lite.plan.build import prepare

    chosen = method_named(method)
    given = chosen.resolved(params)
    _check(experts)
    recipe = {
        "base": base,
        "experts": {name: {"model": model} for name, model in experts.items()},
        "steps": ["task_arithmetic"],
        "routers": "merge",
    }
    ready, found = prepare(load(recipe, models=True))
    if named := [job.name for job in ready.jobs if ":" in job.name]:
        raise RecipeError("names of tensors in a store hold no colon", named[0], "rename it")
    make(
        ready,
        found,
        Path(out),
        chosen,
        given,
        overwrite=overwrite,
        emit=emit or (lambda event: None),
    )
    return summary(out)


def pack_recipe(
    recipe: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any
) -> StoreSummary:
    """Write the store of a recipe's experts; its steps, weights and rules are not looked at.

    Args:
        recipe: path of the file.
        out: the file to make.
        options: as `pack` takes them.

    Raises:
        RecipeError: an expert is an adapter or a stage, or as `pack`.
    """
    read = load(recipe)

    def placed(reference: str) -> str:
        path = read.folder / Path(reference).expanduser()
        return str(path) if path.exists() else reference

    problems = [
        Problem(f"the expert `{name}` is no whole model", read.at("experts", name), _KEEP)
        for name, expert in read.experts.items()
        if expert.key != "model" or expert.reference.startswith("@")
    ]
    if read.base.startswith("@"):
        problems.append(Problem("a stage cannot be packed", read.at("base"), "run it first"))
    if problems:
        raise RecipeError(problems)
    experts = {name: placed(expert.reference) for name, expert in read.experts.items()}
    return pack(experts, placed(read.base), out, **options)


def summary(store: str | os.PathLike[str]) -> StoreSummary:
    """Return what a store holds; only its header is read.

    Raises:
        RecipeError: it is no store.
        DataError: it is damaged.
        SourceError: there is no such file.
    """
    from mergekit_lite.report.stores import summarise_store
    from mergekit_lite.sources import resolve, stored_tasks

    found = stored_tasks(str(store), Path())
    if found is None:
        resolve(str(store), relative_to=Path())  # says what is wrong with the file
        raise RecipeError(f"`{store}` is no store", hint="`mergekit-lite store pack` makes stores")
    return summarise_store(*found)


def materialize(
    store: str | os.PathLike[str],
    task: str,
    out: str | os.PathLike[str],
    *,
    base: str | None = None,
    dtype: str | None = None,
    emit: Callable[[Event], None] | None = None,
    **options: Any,
) -> Report:
    """Make the model that one task of a store stands for, in the folder `out`.

    Args:
        store: the file.
        task: name of the task.
        out: folder to make.
        base: the model that the store was made against, to the byte; by default what has its name
            beside the store or in the working folder, or in the zoo.
        dtype: of the model; that of the base by default.
        emit: called with the events of the run, from any thread.
        options: as `run` takes them.

    Raises:
        RecipeError: it is no store, has no such task, or is one of another base; tensors that
            differ are named.
        SourceError: the base is not found.
        DataError, ResourceError, Interrupted: the store is damaged, or as `run`.
    """
    from mergekit_lite.patches.apply import recipe_of

    told = summary(store)
    reference = f"{os.fspath(store)}#{task}"
    recipe = recipe_of(reference, base or _base_of(Path(store), told.base), dtype)
    return run(recipe, out, emit=emit, **options)


_KEEP = "pack models; an adapter, a patch or a task of a store is small as it is"


def _check(experts: Mapping[str, str]) -> None:
    """Refuse what is smaller than anything that could be stored of it."""
    from mergekit_lite.sources import resolve

    problems = [] if experts else [Problem("there is nothing to pack", hint="name experts")]
    for name, model in experts.items():
        kind = resolve(model, relative_to=Path()).kind
        if kind != "checkpoint":
            what = f"`{model}` is {'an adapter' if kind == 'adapter' else 'a patch'}, not a model"
            problems.append(Problem(what, f"expert `{name}`", _KEEP))
    if problems:
        raise RecipeError(problems)


def _base_of(store: Path, name: str) -> str:
    if ":" in name:
        return name
    for folder in (store.parent, Path()):
        if (folder / name).exists():
            return str(folder / name)
    raise SourceError(
        f"the base `{name}` of the store is neither beside it nor here",
        str(store),
        "name it with --base",
    )
