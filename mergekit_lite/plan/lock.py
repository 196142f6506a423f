"""`recipe.lock.yaml`: exactly which bytes went into a merge and which came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mergekit_lite import __version__
from mergekit_lite.errors import DataError, Problem, RecipeError, SourceError
from mergekit_lite.plan.digests import (
    DigestCache,
    Reading,
    changed_size,
    digests_of,
    file_sha256,
    reading_file,
    reading_model,
)
from mergekit_lite.plan.statistic_files import statistic_files
from mergekit_lite.plan.types import Input, Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

LOCK_FILE = "recipe.lock.yaml"
LOCK_VERSION = 1

_HEAD = "# What this merge was made of and what it wrote. `mergekit-lite verify` rechecks it.\n"


def _path(source: Input, file: str) -> Path:
    root = Path(source.root)
    return root if root.is_file() else root / file


def input_digests(
    plan: Plan,
    cache: DigestCache | None = None,
    *,
    models: Mapping[str, Model] | None = None,
    threads: int = 2,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, dict[str, str]]:
    """Return the sha256 of every weight file of every input: input -> file -> digest.

    Args:
        plan: whose inputs are hashed; two inputs with one root are hashed once.
        cache: remembered digests; the caller saves it.
        models: the plan's inputs, without which only files of this machine can be hashed.
        threads: which hash at the same time.
        progress: called with byte counts as files are read.

    Raises:
        SourceError: a file has gone or cannot be read.
        DataError: a file's size is no longer the planned one.
    """
    leaves = plan.leaves
    # Inputs that share a root share its files; one of them stands for all.
    owners = {(i.root, file): name for name, i in leaves.items() for file in i.files}

    @contextmanager
    def reading(name: str, file: str) -> Iterator[Reading]:
        path = _path(leaves[name], file)
        try:
            if models is not None:
                opened = reading_model(models[name], file, cache, progress)
            else:
                found, planned = path.stat().st_size, leaves[name].files[file]
                if found != planned:
                    raise changed_size(path, found, planned)
                opened = reading_file(path, cache, progress)
            with opened as result:
                yield result
        except OSError as error:
            raise SourceError(str(error.strerror or error), where=str(path)) from error

    files = [partial(reading, name, file) for (_, file), name in owners.items()]
    places = [_place(leaves[name], file) for (_, file), name in owners.items()]
    found = digests_of(files, threads, places)
    digests = dict(zip(owners, found, strict=True))
    return {
        name: {file: digests[source.root, file] for file in source.files}
        for name, source in plan.leaves.items()
    }


def _place(source: Input, file: str) -> int:
    """Return how many bytes of an input come before one of its files."""
    names = list(source.files)
    return sum(source.files[name] for name in names[: names.index(file)])


def lock_inputs(plan: Plan, digests: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the part of a lock that is known before the run, as plain data.

    No local path enters it beyond what the recipe itself says: a root is known by its last name.

    Args:
        plan: what is to be run.
        digests: input -> file -> sha256, as `input_digests` returns them.
    """
    return {
        "lock_version": LOCK_VERSION,
        "tool": f"mergekit-lite {__version__}",
        "seed": plan.seed,
        "plan": plan.content_digest(),
        "recipe": dict(plan.recipe),
        "inputs": {
            name: {
                "reference": source.reference,
                "root": Path(source.root).name,
                "kind": source.kind,
                **({"revision": source.revision} if source.revision else {}),
                "files": {
                    file: {"size": size, "sha256": digests[name][file]}
                    for file, size in source.files.items()
                },
            }
            for name, source in plan.leaves.items()
        },
        **_statistics(plan),
    }


def _statistics(plan: Plan) -> dict[str, Any]:
    """Return size and sha256 of every statistic file; nothing where there are none."""
    facts = {
        name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for name, path in statistic_files(plan).items()
    }
    return {"statistics": facts} if facts else {}


def lock_outputs(
    lock: Mapping[str, Any], folder: Path, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Return `lock` with the files of the finished model added: file -> size and sha256."""
    return {
        **lock,
        "outputs": {
            file: {"size": (folder / file).stat().st_size, "sha256": digest}
            for file, digest in sorted(digests.items())
        },
    }


def lock_text(lock: Mapping[str, Any]) -> str:
    """Return a lock as YAML text."""
    body = yaml.safe_dump(dict(lock), sort_keys=False, allow_unicode=True, width=1000)
    return _HEAD + body


def read_lock(path: str | Path) -> dict[str, Any]:
    """Read a lock back and check that it has the parts that `verify` needs.

    Raises:
        SourceError: there is no such file.
        DataError: the file is no lock, or one of a later version.
    """
    path = Path(path)
    try:
        lock = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SourceError(
            f"cannot read the lock: {error.strerror}", str(path), "a merge writes it at its end"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError("the lock is not YAML", str(path)) from error
    problems = _lock_problems(lock)
    if problems:
        raise DataError([Problem(problem, str(path)) for problem in problems])
    return dict(lock)


def _lock_problems(lock: object) -> list[str]:
    if not isinstance(lock, dict):
        return ["the lock is not a mapping"]
    if lock.get("lock_version") != LOCK_VERSION:
        return [f"lock_version is {lock.get('lock_version')}, this version reads {LOCK_VERSION}"]
    problems = [
        f"the lock has no `{key}`"
        for key in ("recipe", "inputs", "outputs", "plan", "seed")
        if key not in lock
    ]
    groups = [lock.get("outputs") or {}]
    inputs = lock.get("inputs")
    groups += [(i or {}).get("files") or {} for i in (inputs or {}).values()]
    for files in groups:
        problems += [
            f"the lock gives no size or no sha256 for {file}"
            for file, facts in files.items()
            if not isinstance(facts, dict) or not {"size", "sha256"} <= facts.keys()
        ]
    return problems


def changed_inputs(lock: Mapping[str, Any], now: Mapping[str, Any]) -> list[Problem]:
    """Return which inputs of an earlier lock are no longer the same bytes.

    Args:
        lock: of the earlier run.
        now: `lock_inputs` of the same recipe today.
    """
    problems = []
    for name, before in lock["inputs"].items():
        after = now["inputs"].get(name)
        if after is None:
            problems.append(Problem(f"input `{name}` of the lock is not in the recipe"))
            continue
        for file, facts in before["files"].items():
            found = after["files"].get(file)
            if found is None:
                problems.append(Problem("the file is gone", where=f"{name}: {file}"))
            elif found["sha256"] != facts["sha256"]:
                problems.append(
                    Problem(
                        f"sha256 is {found['sha256'][:12]}…, the lock says {facts['sha256'][:12]}…",
                        where=f"{name}: {file}",
                        hint="the input has changed since the lock was written",
                    )
                )
    problems += [
        Problem(f"input `{name}` is not in the lock")
        for name in now["inputs"]
        if name not in lock["inputs"]
    ]
    return problems


def require_unchanged(lock: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `RecipeError` unless today's inputs are the bytes that the lock names."""
    problems = changed_inputs(lock, now)
    if problems:
        raise RecipeError(problems)
