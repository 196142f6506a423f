"""Recheck a finished merge: is every byte still what the lock says, and does it fit together?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint import FLOAT_DTYPES, TensorInfo
from mergekit_lite.checkpoint.index import INDEX_NAME, INDEX_SUFFIX, part_of, read_index
from mergekit_lite.checkpoint.parse import read_file_header
from mergekit_lite.errors import MergekitLiteError, Problem, SourceError
from mergekit_lite.export.companions import is_weights
from mergekit_lite.export.config import CONFIG_FILE, config_dtype, parse_config
from mergekit_lite.export.manifest import REPORT_FILE, report_sha256
from mergekit_lite.export.vocabulary import vocabulary_problems
from mergekit_lite.plan.digests import file_sha256, model_sha256
from mergekit_lite.plan.layout import OUTPUT_DTYPES
from mergekit_lite.plan.lock import LOCK_FILE, read_lock

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

Progress = Callable[[int], Any]


@dataclass(frozen=True)
class MissingInput(Problem):
    """An input of the lock that cannot be found, which says nothing about the merge itself."""


def verify(
    folder: str | Path,
    *,
    inputs: bool = False,
    relative_to: str | Path = ".",
    progress: Progress | None = None,
) -> list[Problem]:
    """Return everything that is wrong with a merged model; an empty list if it is sound.

    The model card is left out: people edit it before they share a model.

    Args:
        folder: the output of a run, with its `recipe.lock.yaml`.
        inputs: recheck the inputs that the lock names as well.
        relative_to: folder from which the lock's relative references to inputs start.
        progress: called with byte counts as files are read.

    Raises:
        SourceError: there is no such folder, or no lock in it.
        DataError: the lock cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SourceError("no such folder", str(folder), "give the output folder of a run")
    lock = read_lock(folder / LOCK_FILE)
    outputs: Mapping[str, Mapping[str, Any]] = lock["outputs"]
    problems = check_files(
        {file: (folder / file, facts) for file, facts in outputs.items()}, progress
    )
    damaged = {problem.where for problem in problems}
    shards = [file for file in outputs if file.endswith(".safetensors")]
    problems += _report(folder, lock.get("report"))
    problems += _stray(folder, outputs)
    if not damaged.intersection(shards):
        found = _structure(folder, shards)
        # An index that the lock names and that is gone has been told of.
        gone = {name for name in damaged if not (folder / name).exists()}
        problems += [p for p in found if p.where not in gone]
    if inputs:
        problems += _inputs(lock, Path(relative_to), progress)
    return problems


def check_files(
    files: Mapping[str, tuple[Path, Mapping[str, Any]]], progress: Progress | None = None
) -> list[Problem]:
    """Return which files are not of the size and sha256 they should be.

    Args:
        files: name to report -> (path, facts with `size` and `sha256`).
        progress: called with byte counts as files are read.
    """

    def check(item: tuple[str, tuple[Path, Mapping[str, Any]]]) -> Problem | None:
        name, (path, facts) = item
        try:
            found = path.stat().st_size
            if found != facts["size"]:
                return Problem(f"has {found:,} bytes, the lock says {facts['size']:,}", name)
            digest = file_sha256(path, None, progress)
        except OSError as error:
            return Problem(f"cannot be read: {error.strerror or error}", name)
        if digest != facts["sha256"]:
            return Problem(f"sha256 is {digest[:12]}…, the lock says {facts['sha256'][:12]}…", name)
        return None

    with ThreadPoolExecutor(max_workers=2) as pool:
        return [problem for problem in pool.map(check, files.items()) if problem]


def _report(folder: Path, facts: Mapping[str, str] | None) -> list[Problem]:
    """Return whether the report has changed; locks of earlier merges do not speak of it."""
    if not isinstance(facts, Mapping):
        return []
    try:
        found = report_sha256(json.loads((folder / REPORT_FILE).read_bytes()))
    except OSError as error:
        return [Problem(f"cannot be read: {error.strerror or error}", REPORT_FILE)]
    except (ValueError, AttributeError):
        return [Problem("is no report of a merge", REPORT_FILE)]
    if found == facts.get("sha256_without_run"):
        return []
    return [Problem("is not the report that the lock was written with", REPORT_FILE)]


def _stray(folder: Path, outputs: Mapping[str, Any]) -> list[Problem]:
    # Loaders that take every weight file of a folder would load these too.
    hint = "remove it; some loaders read every weight file of a folder"
    folders = {(folder / name).parent for name in outputs if is_weights(Path(name))} | {folder}
    names = {
        path.relative_to(folder).as_posix()
        for place in folders
        if place.is_dir()
        for path in place.iterdir()
        if path.is_file() and is_weights(path)
    }
    return [
        Problem("a weight file that the merge did not write", name, hint)
        for name in sorted(names - {*outputs, INDEX_NAME})
    ]


def _structure(folder: Path, shards: Sequence[str]) -> list[Problem]:
    try:
        headers = {file: read_file_header(folder / file, file)[0] for file in shards}
        problems = []
        parts = list(dict.fromkeys(map(part_of, shards)))
        for part in parts:
            own = {file: headers[file] for file in shards if part_of(file) == part}
            problems += _index(folder, part + INDEX_SUFFIX, own)
        tensors = {name: info for found in headers.values() for name, info in found.items()}
        problems += _dtype(folder, [info for found in headers.values() for info in found.values()])
        # The parts of a pipeline each have a config and a vocabulary of their own.
        problems += _vocabulary(folder, tensors) if len(parts) == 1 else []
    except MergekitLiteError as error:
        return list(error.problems)
    return problems


def _index(
    folder: Path, name_of_index: str, headers: Mapping[str, Mapping[str, TensorInfo]]
) -> list[Problem]:
    path = folder / name_of_index
    if not path.is_file():
        missing = Problem(f"missing, and there are {len(headers)} weight files", name_of_index)
        return [missing] if len(headers) > 1 else []
    index = read_index(path)
    stored = {name: file.rpartition("/")[2] for file, found in headers.items() for name in found}
    total = sum(info.nbytes for found in headers.values() for info in found.values())
    problems = [
        Problem(
            f"`{name}` is in {stored.get(name, 'no file')}, the index says {file}", name_of_index
        )
        for name, file in index.weight_map.items()
        if stored.get(name) != file
    ]
    problems += [
        Problem(f"`{name}` of {file} is not in the index", name_of_index)
        for name, file in stored.items()
        if name not in index.weight_map
    ]
    if index.total_size != total:
        what = f"total_size is {index.total_size}, the tensors have {total} bytes"
        problems.append(Problem(what, name_of_index))
    return problems


def _dtype(folder: Path, tensors: Sequence[TensorInfo]) -> list[Problem]:
    path = folder / CONFIG_FILE
    nbytes: dict[str, int] = {}
    for info in tensors:
        if info.dtype in FLOAT_DTYPES:
            nbytes[info.dtype] = nbytes.get(info.dtype, 0) + info.nbytes
    if not path.is_file() or not nbytes:
        return []
    named = config_dtype(parse_config(path.read_bytes(), CONFIG_FILE))
    stored = max(nbytes, key=lambda dtype: (nbytes[dtype], dtype))
    names = {**OUTPUT_DTYPES, "float64": "F64"}
    if named is None or names.get(named) == stored:
        return []
    return [Problem(f"names the dtype {named}, most of the weights are {stored}", CONFIG_FILE)]


def _vocabulary(folder: Path, tensors: Mapping[str, TensorInfo]) -> list[Problem]:
    path = folder / CONFIG_FILE
    config = parse_config(path.read_bytes(), CONFIG_FILE) if path.is_file() else None
    return vocabulary_problems(folder, tensors, config)


def _inputs(lock: Mapping[str, Any], relative_to: Path, progress: Progress | None) -> list[Problem]:
    from mergekit_lite.sources import resolve

    problems: list[Problem] = []
    for name, source in lock["inputs"].items():
        try:
            model = resolve(source["reference"], relative_to=relative_to)
        except MergekitLiteError as error:
            kind = MissingInput if isinstance(error, SourceError) else Problem
            where = f"input {name}"
            hint = _elsewhere(source["reference"], relative_to)
            problems += [kind(p.what, where, hint or p.hint) for p in error.problems]
            continue
        for file, facts in source["files"].items():
            problem = _input(model, file, facts, progress)
            problems += [Problem(problem, f"input {name}: {file}")] if problem else []
    statistics: Mapping[str, Mapping[str, Any]] = lock.get("statistics") or {}
    found = {name: (relative_to / name, facts) for name, facts in statistics.items()}
    return problems + check_files(found, progress)


def _elsewhere(reference: str, relative_to: Path) -> str:
    """Return what to do about a relative reference that leads nowhere from here."""
    scheme, colon, _ = reference.partition(":")
    if reference.startswith(("/", "~", "$", "@")) or (colon and scheme.isalnum()):
        return ""
    here = relative_to.resolve()
    return f"`{reference}` was looked for from `{here}`; name the recipe's folder by --relative-to"


def _input(
    model: Model, file: str, facts: Mapping[str, Any], progress: Progress | None
) -> str | None:
    """Return what is wrong with one weight file of an input, wherever its source has it."""
    found = model.header.files.get(file)
    if found is None:
        return "is gone"
    if found != facts["size"]:
        return f"has {found:,} bytes, the lock says {facts['size']:,}"
    try:
        digest = model_sha256(model, file, None, progress)
    except MergekitLiteError as error:
        return error.problems[0].what
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if digest != facts["sha256"]:
        return f"sha256 is {digest[:12]}…, the lock says {facts['sha256'][:12]}…"
    return None
