"""Tasks of the evaluation harness lm-eval: named, found, and of which version."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from mergekit_lite.calibrate.texts import read_utf8
from mergekit_lite.errors import DataError, Problem, RecipeError, SourceError
from mergekit_lite.quality.labelled import VERSION, digest

SCHEME = "task:"
"""What a reference to a task begins with."""
_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class Task:
    """A task of lm-eval.

    Attributes:
        name: of the data.
        task: what lm-eval calls it.
        folder: of the file that describes it; None where it is one of lm-eval's own.
        version: what a score of it depends on, as a digest.
    """

    name: str
    task: str
    folder: Path | None
    version: str


def require_harness(what: str) -> None:
    """Check that lm-eval is installed.

    Args:
        what: that needs it.

    Raises:
        SourceError: it is not; tells how to install it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        hint = 'install it with `pip install "mergekit-lite[eval]"`'
        raise SourceError("tasks are run by the package lm-eval", what, hint)


def named_tasks(words: str) -> dict[str, str]:
    """Return what `NAME,FILE.yaml,...` on a command line names, as references by name.

    Raises:
        RecipeError: two have the same name.
    """
    found: dict[str, str] = {}
    for word in filter(None, (part.strip() for part in words.split(","))):
        name = Path(word).stem if word.endswith(_FILES) else word
        if name in found:
            raise RecipeError(f"two tasks are called `{name}`", "--tasks", "name each once")
        found[name] = SCHEME + word
    return found


def read_tasks(references: Mapping[str, str], *, folder: Path = Path()) -> list[Task]:
    """Return the tasks among references to data, in order.

    `task:NAME` is one of lm-eval's own; `task:FILE.yaml` is described by a file, whose data may be
    files beside it, so that it needs no network.

    Args:
        references: name -> reference.
        folder: that relative paths start from.

    Raises:
        SourceError: lm-eval is not installed, or a file is not there.
        DataError: a file describes no task, or its data is missing; all problems are told.
    """
    tasks = {n: r.removeprefix(SCHEME) for n, r in references.items() if r.startswith(SCHEME)}
    if not tasks:
        return []
    require_harness("--tasks")
    found: list[Task] = []
    problems: list[Problem] = []
    for name, word in tasks.items():
        try:
            found.append(_task(name, word, folder))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return found


def _task(name: str, word: str, folder: Path) -> Task:
    harness = importlib.metadata.version("lm_eval")
    if not word.endswith(_FILES):
        return Task(name, word, None, digest(["task", VERSION, harness, word]))
    file = (folder / Path(word).expanduser()).resolve()
    text = read_utf8(file)
    hint = "write what lm-eval's documentation has of task files, with `task: NAME` in it"
    # Tags of the harness (`!function`) stand for code, which is its own to load.
    plain = re.sub(r"!function\s+", "", text)
    try:
        value = yaml.safe_load(plain)
    except yaml.YAMLError as error:
        raise DataError(f"not YAML: {str(error).splitlines()[0]}", str(file), hint) from error
    if not isinstance(value, dict) or not isinstance(value.get("task"), str):
        raise DataError("it describes no task", str(file), hint)
    data = [file.parent / name for name in _files(value.get("dataset_kwargs"))]
    if missing := [each for each in data if not each.is_file()]:
        what = "a file of its data is not there"
        raise DataError([Problem(what, str(each), "check its `data_files`") for each in missing])
    contents = [each.read_bytes().hex() for each in data]
    return Task(
        name, value["task"], file.parent, digest(["task", VERSION, harness, text, contents])
    )


def _files(arguments: object) -> list[str]:
    """Return the files that a task says its data is in, as far as they are local."""
    named = arguments.get("data_files") if isinstance(arguments, dict) else None
    values = list(named.values()) if isinstance(named, dict) else [named]
    found = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [one for one in found if isinstance(one, str) and "://" not in one and "*" not in one]
