"""Decides which files of a folder are the checkpoint, and reads their headers as one."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mergekit_lite.checkpoint._types import Header, TensorInfo
from mergekit_lite.checkpoint.index import (
    DIFFUSERS_STEM,
    INDEX_NAME,
    INDEX_SUFFIX,
    Index,
    read_index,
)
from mergekit_lite.checkpoint.parse import FRESH_COPY, read_file_header
from mergekit_lite.errors import DataError, MergekitLiteError, Problem, RecipeError, SourceError

ADAPTER_FILE = "adapter_model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")


def weight_files(folder: Path) -> tuple[list[str], Index | None, list[str]]:
    """Return the weight files of a folder, its index if it has one, and warnings.

    Raises:
        RecipeError: the folder holds an adapter, another format, or not all files of the index.
        DataError: the index is damaged.
        SourceError: there are no weights.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise SourceError(f"cannot read `{folder}`: {error.strerror or error}") from error
    present = [name for name in names if name.endswith(".safetensors") and name != ADAPTER_FILE]
    warnings = []
    if index := _index_of(folder, names):
        _require_all(folder, index)
        stray = [name for name in present if name not in set(index.files)]
        warnings += [f"`{folder}`: `{name}` is not in the index and is ignored" for name in stray]
        return index.files, index, warnings
    if not present:
        raise _no_weights(folder, names)
    for usual in ("model.safetensors", f"{DIFFUSERS_STEM}.safetensors"):
        if usual in present:
            stray = [name for name in present if name != usual]
            warnings += [f"`{folder}`: `{name}` is beside {usual} and is ignored" for name in stray]
            return [usual], None, warnings
    _require_whole_set(folder, present)
    if len(present) > 1:
        warnings.append(f"`{folder}` has no index; its {len(present)} weight files are joined")
    return present, None, warnings


def read_files(
    folder: Path, files: Sequence[str], index: Index | None = None, warnings: Sequence[str] = ()
) -> Header:
    """Read the headers of `files` as one checkpoint, and hold them against the index."""
    listed: defaultdict[str, list[str]] = defaultdict(list)
    for name, file in index.weight_map.items() if index else ():
        listed[file].append(name)
    tensors: dict[str, TensorInfo] = {}
    sizes: dict[str, int] = {}
    first: dict[str, str] | None = None
    twice: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    faults: list[MergekitLiteError] = []
    for file in files:
        try:
            found, metadata, sizes[file] = read_file_header(folder / file, file)
        except (DataError, RecipeError) as error:
            faults.append(error)
            continue
        first = metadata if first is None else first
        if index is not None:
            if absent := [name for name in listed[file] if name not in found]:
                faults.append(_index_disagrees(folder / file, index, absent))
            # A copy of a tensor in a second shard: the index says which one counts.
            found = {n: info for n, info in found.items() if index.weight_map.get(n, file) == file}
        for name in sorted(found.keys() & tensors.keys()):
            twice[tensors[name].file, file].append(name)
        tensors |= found
    if faults:
        # Damaged bytes outrank an unsupported dtype: the exit code is that of the worse fault.
        kind = DataError if any(isinstance(f, DataError) for f in faults) else type(faults[0])
        raise kind([problem for fault in faults for problem in fault.problems])
    if twice:
        raise RecipeError([_stored_twice(folder, *pair, names) for pair, names in twice.items()])
    notes = [*warnings, *_index_notes(folder, index, tensors)]
    return Header(tensors, sizes, first or {}, tuple(notes))


def _index_of(folder: Path, names: Sequence[str]) -> Index | None:
    found = [name for name in names if name.endswith(INDEX_SUFFIX)]
    for usual in (INDEX_NAME, DIFFUSERS_STEM + INDEX_SUFFIX):
        if usual in found:
            return read_index(folder / usual)
    if len(found) > 1:
        raise RecipeError(
            f"`{folder}` has {len(found)} indexes: {', '.join(found)}",
            hint=f"keep the one of the checkpoint, as {INDEX_NAME}",
        )
    return read_index(folder / found[0]) if found else None


def _require_all(folder: Path, index: Index) -> None:
    absent = [file for file in index.files if not (folder / file).is_file()]
    if absent:
        raise RecipeError(
            f"`{folder}`: the index names {len(index.files)} files, {len(absent)} absent: "
            + _few(absent),
            hint="the download or the copy did not finish: fetch the missing files",
        )
    if not index.files:
        raise SourceError(f"`{folder}`: the index names no files", hint=FRESH_COPY)


def _require_whole_set(folder: Path, present: Sequence[str]) -> None:
    sets: dict[tuple[str, int], set[int]] = {}
    for match in filter(None, map(SHARD_NAME.fullmatch, present)):
        key = (match["stem"], int(match["count"]))
        sets.setdefault(key, set()).add(int(match["number"]))
    for (stem, count), numbers in sets.items():
        if len(numbers) < count:
            raise RecipeError(
                f"`{folder}` has {len(numbers)} of the {count} files of `{stem}` and no index",
                hint="the download or the copy did not finish: fetch the missing files",
            )


def _index_disagrees(path: Path, index: Index, absent: Sequence[str]) -> DataError:
    return DataError(
        f"`{path}` lacks tensors that {index.file} places there ({len(absent)}): {_few(absent)}",
        hint="index and weights are of different checkpoints: fetch or save both again",
    )


def _stored_twice(folder: Path, first: str, second: str, names: Sequence[str]) -> Problem:
    return Problem(
        f"`{folder}`: `{first}` and `{second}` hold the same tensors ({len(names)}): {_few(names)}",
        hint="keep the files of one checkpoint in the folder, or add its index",
    )


def _index_notes(folder: Path, index: Index | None, tensors: dict[str, TensorInfo]) -> list[str]:
    if index is None:
        return []
    notes = []
    if unlisted := [name for name in tensors if name not in index.weight_map]:
        notes.append(
            f"`{folder}`: the weight files hold tensors that the index does not list "
            f"({len(unlisted)}), read all the same: {_few(unlisted)}"
        )
    total = sum(info.nbytes for info in tensors.values())
    if index.total_size not in (None, total):
        notes.append(
            f"`{folder}`: the index says total_size {index.total_size:,}, "
            f"the weights have {total:,}"
        )
    return notes


def _no_weights(folder: Path, names: Sequence[str]) -> MergekitLiteError:
    if "adapter_config.json" in names or ADAPTER_FILE in names:
        base = _adapter_base(folder) or "its base model"
        return RecipeError(
            f"`{folder}` is a LoRA of {base}, not a model",
            hint=f"write `base: {base}` and, for the expert, `lora: {folder}`",
        )
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return RecipeError(
            f"`{folder}` holds GGUF files only (`{gguf[0]}`)",
            hint="merging needs the 16-bit safetensors checkpoint they were made from",
        )
    if pickles := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        return RecipeError(
            f"`{folder}` holds PyTorch pickles only (`{pickles[0]}`), which can run code when read",
            hint=f"convert it first: `mergekit-lite convert {folder} -o DIR`",
        )
    return SourceError(
        f"`{folder}` holds no safetensors weights",
        hint="give the folder that holds config.json and the *.safetensors files",
    )


def _adapter_base(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return base if isinstance(base, str) else ""


def _few(names: Sequence[str]) -> str:
    """Return the first names of a list that may have thousands."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
