"""A file that is made beside its place and appears there complete, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit_lite.engine.events import Event
from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.export.exclusive import only_run
from mergekit_lite.export.target import partial_folder
from mergekit_lite.plan.types import Plan


@contextmanager
def making_file(
    plan: Plan, out: Path, *, overwrite: bool, emit: Callable[[Event], None]
) -> Iterator[Path]:
    """Give the path under which to make a file, and put it in place once all is done.

    What an earlier call has left is thrown away; when something goes wrong, nothing is left.

    Args:
        plan: names the inputs, which the file must not replace.
        out: the file's place.
        overwrite: replace a file that is there.
        emit: told what the user should know.

    Raises:
        RecipeError: the place does not fit, or another run is making the file.
    """
    out = out.expanduser().absolute()
    _check(plan, out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = partial_folder(out)
    with only_run(work, emit):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield work / out.name
            os.replace(work / out.name, out)
            _sync(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make a rename last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check(plan: Plan, out: Path, overwrite: bool) -> None:
    problems = []
    if out.suffix != ".safetensors":
        hint = f"`{out.name}.safetensors`, for example"
        problems.append(Problem("what is made is a `.safetensors` file", str(out), hint))
    if out.is_dir():
        problems.append(Problem("is a folder", str(out), "name a file in it"))
    elif out.exists() and not overwrite:
        hint = "choose another name, or give --overwrite to replace it"
        problems.append(Problem("the file is there already", str(out), hint))
    for name, source in plan.leaves.items():
        root = Path(source.root)
        files = [root] if root.is_file() else [root / file for file in source.files]
        if out.resolve() in [file.resolve() for file in files]:
            problems.append(Problem(f"is a file of the input `{name}`", str(out)))
    if problems:
        raise RecipeError(problems)
