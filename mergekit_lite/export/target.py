"""Whether the output may go where the user wants it, asked before anything is read or written."""

from __future__ import annotations

import os
from pathlib import Path

from mergekit_lite.engine.journal import JOURNAL
from mergekit_lite.errors import MergekitLiteError, Problem, RecipeError, ResourceError
from mergekit_lite.export.config import CONFIG_FILE
from mergekit_lite.plan.lock import LOCK_FILE
from mergekit_lite.plan.types import Plan


def partial_folder(out: Path) -> Path:
    """Return the folder in which the output of `out` is made, beside it."""
    return out.with_name(out.name + ".partial")


def check_target(plan: Plan, out: Path, *, overwrite: bool = False, fresh: bool = False) -> None:
    """Refuse an output folder that would mix, hide or destroy files.

    Args:
        plan: names the inputs that the output must stay clear of.
        out: the folder to make.
        overwrite: allow a folder that looks like a model; it is replaced as a whole.
        fresh: what is in the working folder beside it may be thrown away.

    Raises:
        RecipeError: the folder is a file, not empty, entangled with an input, or holds what is
            no model.
        ResourceError: nothing can be written there.
    """
    if out.is_mount():
        what = "the output folder is a mount point, which cannot be put in place as a whole"
        raise RecipeError(what, str(out), "name a folder below it")
    problems = [*_entangled(plan, out), *_precious(plan, out)]
    if out.exists() and not out.is_dir():
        problems.append(Problem("is a file", str(out), "name a folder"))
    elif out.is_dir() and any(out.iterdir()):
        problems += _filled(out, overwrite=overwrite)
    if not fresh:
        problems += _foreign(partial_folder(out))
    if problems:
        raise RecipeError(problems)
    if error := _unwritable(out):
        raise error


def _entangled(plan: Plan, out: Path) -> list[Problem]:
    target = out.resolve()
    problems = []
    for name, source in plan.leaves.items():
        root = Path(source.root).resolve()
        if root in (target, partial_folder(target)):
            what = f"the output folder is the input `{name}`"
        elif root.is_dir() and root in target.parents:
            what = f"the output folder lies inside the input `{name}`"
        elif target in root.parents:
            what = f"the input `{name}` lies inside the output folder"
        else:
            continue
        problems.append(Problem(what, str(out), "choose a folder apart from every input"))
    return problems


def _precious(plan: Plan, out: Path) -> list[Problem]:
    """Return the problem of a folder that holds what the user works with: it would be replaced."""
    target = out.resolve()
    for label, folder in (
        ("current folder", Path.cwd()),
        ("folder of the recipe", Path(plan.folder).resolve()),
        ("home folder", Path.home()),
    ):
        if target == folder or target in folder.parents:
            what = f"the output folder {'is' if target == folder else 'holds'} the {label}"
            return [Problem(what, str(out), "name a folder of the output's own")]
    return []


def _filled(out: Path, *, overwrite: bool) -> list[Problem]:
    """Return the problem of an output folder with something in it."""
    if not overwrite:
        hint = "choose another folder, or give --overwrite to replace it"
        return [Problem("the output folder is not empty", str(out), hint)]
    if (out / JOURNAL).exists():
        what = "the output folder is where an unfinished run works"
        return [Problem(what, str(out), "choose another folder")]
    known = (out / LOCK_FILE, out / CONFIG_FILE)
    if any(file.is_file() for file in known) or any(out.glob("*.safetensors")):
        return []
    what = f"--overwrite would delete `{_some_file(out)}`: this does not look like a model"
    hint = "choose another folder, or remove this one yourself"
    return [Problem(what, str(out), hint)]


def _some_file(folder: Path) -> Path:
    """Return a file below `folder`, from there; a folder where there are only such."""
    for here, folders, files in os.walk(folder):
        folders.sort()
        if files:
            return (Path(here) / min(files)).relative_to(folder)
    return min(folder.iterdir()).relative_to(folder)


def _foreign(work: Path) -> list[Problem]:
    """Return the problem of a working folder that no run has left: its files are not ours."""
    if not work.exists() or (
        work.is_dir() and ((work / JOURNAL).exists() or not any(work.iterdir()))
    ):
        return []
    hint = "move it away, or pass --fresh to throw it away"
    return [Problem("is in the way, and is not an unfinished run", str(work), hint)]


def _unwritable(out: Path) -> MergekitLiteError | None:
    parent = out.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        return RecipeError(f"`{parent}` is a file, not a folder", str(out), "choose another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        hint = "choose an output folder on a writable place, or change the mode of that one"
        return ResourceError(f"cannot write in `{parent}`", str(out), hint)
    return None
