"""What several experts share: the mean of their differences, and where files of it go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergekit_lite.errors import Problem, RecipeError

SHARED = "shared"
"""Name of the file of what experts share."""


def mean_recipe(models: Mapping[str, str], base: str) -> dict[str, Any]:
    """Return the recipe whose one expert is the mean of models, computed while it is read.

    Args:
        models: name -> model.
        base: what they were tuned from.
    """
    experts = {name: {"model": model, "weight": 1 / len(models)} for name, model in models.items()}
    alone = {"steps": ["task_arithmetic"], "routers": "merge"}
    mean = {"base": base, "experts": experts, "output": {"dtype": "float32"}, **alone}
    return {
        "base": base,
        "experts": {"tuned": {"model": "@mean"}},
        "stages": {"mean": mean},
        **alone,
    }


def places(names: Iterable[str], folder: Path, *, overwrite: bool) -> dict[str, Path]:
    """Return the file of each expert, and of what they share, which comes first.

    Raises:
        RecipeError: a name will not do, there are too few, or files are in the way.
    """
    wanted, problems = list(names), []
    if len(wanted) < 2:
        problems.append(Problem("one expert shares with none", hint="give two, or use `tvq`"))
    for name in wanted:
        if name == SHARED or Path(name).name != name or name.startswith("."):
            hint = "name experts by letters; `shared` is the file of what they share"
            problems.append(Problem(f"no expert can be called `{name}`", hint=hint))
    files = {name: folder / f"{name}.safetensors" for name in (SHARED, *wanted)}
    if folder.exists() and not folder.is_dir():
        problems.append(Problem("is a file", str(folder), "name a folder"))
    elif not overwrite:
        there = [str(file) for file in files.values() if file.exists()]
        hint = "choose another folder, or give --overwrite to replace them"
        problems += [Problem("the file is there already", file, hint) for file in there]
    if problems:
        raise RecipeError(problems)
    return files
