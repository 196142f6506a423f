"""The models that are scored: checkpoints, and adapters together with their base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.run import require_checkpoint
from mergekit_lite.errors import MergekitLiteError, RecipeError
from mergekit_lite.plan.build import prepare
from mergekit_lite.plan.stages import as_model, is_stage
from mergekit_lite.recipe import load
from mergekit_lite.sources import resolve

if TYPE_CHECKING:
    from mergekit_lite.recipe import Recipe
    from mergekit_lite.sources import Model

BASE = "base"
"""What the base is called among parents."""
MERGE = "merge"
"""What the model itself is called in tables and results."""


@dataclass(frozen=True)
class Subject:
    """A model under the name that results have for it.

    Attributes:
        name: `merge` for the model itself, else that of a parent.
        model: its weights, config and tokenizer.
    """

    name: str
    model: Model


def subject(name: str, reference: str, *, base: str = "", folder: Path = Path()) -> Subject:
    """Return a model that is to be scored.

    Args:
        name: what results call it.
        reference: a folder or `zoo:NAME`; an adapter is put onto its base, in fp32 and unwritten.
        base: of an adapter; by default the one that it names.
        folder: that relative paths start from.

    Raises:
        SourceError, DataError: it is missing or damaged.
        RecipeError: it cannot be run, or an adapter does not fit its base.
    """
    found = resolve(reference, relative_to=folder)
    if found.kind == "adapter":
        base = base or (found.adapter.base_model if found.adapter else "")
        if not base:
            what = "the adapter names no base to put it onto"
            raise RecipeError(what, reference, "name it with `--parent base=MODEL`")
        return Subject(name, _together(name, base, {"lora": reference}, {}, folder))
    require_checkpoint(found)
    return Subject(name, found)


def parents(references: Mapping[str, str], *, folder: Path = Path()) -> list[Subject]:
    """Return parents in order; adapters among them go onto the one that is called `base`.

    Raises:
        SourceError, DataError, RecipeError: see `subject`; or one is called `merge`.
    """
    if MERGE in references:
        what = f"`{MERGE}` is what the model itself is called"
        raise RecipeError(what, "--parent", "choose another name")
    base = references.get(BASE, "")
    return [subject(name, each, base=base, folder=folder) for name, each in references.items()]


def parents_of(recipe: Recipe, names: list[str]) -> list[Subject]:
    """Return the base and experts of a recipe that are named, each as a model of its own.

    Raises:
        SourceError, DataError, RecipeError: see `subject`; or one is the result of a stage.
    """
    found = []
    for name in names:
        try:
            found.append(Subject(name, _of_recipe(recipe, name)))
        except MergekitLiteError as error:
            where = recipe.at("base") if name == BASE else recipe.at("experts", name)
            placed = [replace(p, where=p.where or where) for p in error.problems]
            raise type(error)(placed) from None
    return found


def _of_recipe(recipe: Recipe, name: str) -> Model:
    reference = recipe.base
    if name != BASE:
        expert = recipe.experts[name]
        if expert.lora is not None:
            entry = recipe.plain()["experts"][name]
            kept = {key: entry[key] for key in ("lora", "rename", "scope") if entry.get(key)}
            around = {"allow_missing": list(recipe.allow_missing), "extra": recipe.extra}
            return _together(name, recipe.base, kept, around, recipe.folder)
        reference = expert.model or ""
    if is_stage(reference):
        what = f"`{name}` is the result of a stage, and not scored by itself"
        raise RecipeError(what, hint="run the stage as a recipe of its own and name its result")
    return subject(name, reference, folder=recipe.folder).model


def _together(
    name: str, base: str, expert: Mapping[str, Any], around: Mapping[str, Any], folder: Path
) -> Model:
    """Return an adapter on its base, as a model that is computed while it is read."""
    plain: dict[str, Any] = {"steps": ["task_arithmetic"], "output": {"dtype": "float32"}, **around}
    plain |= {"base": _from(base, folder), "experts": {"tuned": {**expert}}}
    plain["experts"]["tuned"]["lora"] = _from(expert["lora"], folder)
    plan, models = prepare(load(plain))
    if plan.tokenizer:
        what = "the adapter has tokens that its base lacks, and is not scored by itself"
        raise RecipeError(what, expert["lora"], "merge it into its base first, and name the result")
    require_checkpoint(models["base"])
    return as_model(name, plan, models, named=False)


def _from(reference: str, folder: Path) -> str:
    """Return a reference that stands for the same model from the working folder."""
    path = folder / Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference
