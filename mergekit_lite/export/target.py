"""Whether the output may go where the user wants it, asked before anything is read or written."""

from __future__ import annotations

import os
from pathlib import Path

from mergekit_lite.engine.journal import JOURNAL
from mergekit_lite.errors import MergekitLiteError, Problem, RecipeError, ResourceError
from mergekit_lite.plan.types import Plan


def partial_folder(out: Path) -> Path:
    """Return the folder in which the output of `out` is made, beside it."""
    return out.with_name(out.name + ".partial")


def check_target(plan: Plan, out: Path, *, overwrite: bool = False, fresh: bool = False) -> None:
    """Refuse an output folder that would mix, hide or destroy files.

    Args:
        plan: names the inputs that the output must stay clear of.
        out: the folder to make.
        overwrite: allow a folder with files in it; it is replaced as a whole.
        fresh: what is in the working folder beside it may be thrown away.

    Raises:
        RecipeError: the folder is a file, not empty, or entangled with an input.
        ResourceError: nothing can be written there.
    """
    problems = _entangled(plan, out)
    if out.exists() and not out.is_dir():
        problems.append(Problem("is a file", str(out), "name a folder"))
    elif out.is_dir() and any(out.iterdir()) and not overwrite:
        hint = "choose another folder, or give --overwrite to replace it"
        problems.append(Problem("the output folder is not empty", str(out), hint))
    if not fresh:
        problems += _foreign(partial_folder(out))
    if problems:
        raise RecipeError(problems)
    if error := _unwritable(out):
        raise error


def _entangled(plan: Plan, out: Path) -> list[Problem]:
    target = out.resolve()
    problems = []
    for name, source in plan.inputs.items():
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
    if target in (Path.home(), *Path.cwd().parents):
        what = "the output folder is the home folder or holds the current one"
        problems.append(Problem(what, str(out), "name a folder of the output's own"))
    return problems


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
