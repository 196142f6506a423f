"""Turns a checkpoint of PyTorch pickles into safetensors, one file at a time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_lite.checkpoint import header_text, role_of
from mergekit_lite.checkpoint.index import INDEX_NAME, index_text
from mergekit_lite.checkpoint.writer import ShardWriter
from mergekit_lite.engine.events import Event
from mergekit_lite.errors import RecipeError, ResourceError
from mergekit_lite.export.companions import is_weights
from mergekit_lite.export.exclusive import only_run
from mergekit_lite.export.finish import put_in_place, sync_tree
from mergekit_lite.export.pickles import pickle_files, read_pickle
from mergekit_lite.export.target import partial_folder
from mergekit_lite.sources.companions import companions_of
from mergekit_lite.sources.local import read_config

if TYPE_CHECKING:
    import torch

MARK = "converting"
"""File of a working folder that tells that it is ours."""

_SET = re.compile(r".+-(?P<part>\d+-of-\d+)\.\w+")


@dataclass
class Converted:
    """What a conversion wrote.

    Attributes:
        files: weight files.
        tensors: how many they hold.
        entries: of all tensors.
        nbytes: bytes of all tensors.
        tied: tensor that is not written -> the one that it shares its numbers with.
        weight_map: tensor -> file.
    """

    files: list[str] = field(default_factory=list)
    entries: int = 0
    nbytes: int = 0
    tied: dict[str, str] = field(default_factory=dict)
    weight_map: dict[str, str] = field(default_factory=dict)


def convert(source: Path, out: Path, emit: Callable[[Event], None]) -> Converted:
    """Write the tensors of `source` as safetensors into the folder `out`, with all other files.

    The folder appears complete or not at all. A file is read with torch's reader of plain weights
    (`weights_only`), is held in memory by itself, and becomes one file of the result. Tensors that
    share their numbers are written once.

    Raises:
        SourceError: there are no pickles.
        RecipeError: files are missing, hold other things than tensors, or `out` is not empty.
        DataError: a file is damaged, or asks for code to be run.
        ResourceError: the disk is full.
    """
    out = out.expanduser().resolve()
    files = pickle_files(source)
    _check_target(source.resolve(), out)
    _require_room(files, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = partial_folder(out)
    with only_run(work, emit):
        if (work / MARK).exists():
            shutil.rmtree(work)  # of a conversion that was killed
        work.mkdir()
        (work / MARK).touch()
        try:
            done = _write_all(files, source, work, emit)
            (work / MARK).unlink()
            sync_tree(work)
            put_in_place(work, out, overwrite=False)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return done


def _check_target(source: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not an empty folder"
        raise RecipeError(f"`{out}` {what}", hint="choose another folder")
    if source == out or source in out.parents or out in source.parents:
        raise RecipeError(f"`{out}` and `{source}` lie in each other", hint="choose another folder")
    work = partial_folder(out)
    if work.exists() and not (work / MARK).exists():
        raise RecipeError(f"`{work}` is in the way", hint="move it away, or choose another folder")


def _require_room(files: list[Path], out: Path) -> None:
    parent = out.parent
    while not parent.exists():
        parent = parent.parent
    needed, free = sum(path.stat().st_size for path in files), shutil.disk_usage(parent).free
    if needed > free:
        raise ResourceError(
            f"the weights need about {needed:,} bytes of disk, {free:,} are free",
            str(out),
            "free some space, or write to another disk",
        )


def _write_all(
    files: list[Path], source: Path, work: Path, emit: Callable[[Event], None]
) -> Converted:
    done = Converted()
    config: Mapping[str, Any] | None = None
    if source.is_dir():
        config = read_config(source)
        _copy_others(source, work)
    for path in files:
        name = _name(path, len(files))
        emit(Event("note", text=f"{path.name} -> {name}"))
        _write_file(path, work / name, config or {}, done)
    if len(files) > 1:
        text = index_text(done.weight_map, done.nbytes, done.entries)
        (work / INDEX_NAME).write_text(text, encoding="utf-8")
    return done


def _copy_others(source: Path, work: Path) -> None:
    others = [path for path in companions_of(source) if not is_weights(path)]
    # These replace what a merge writes by itself; a conversion keeps the model's own.
    own = [Path(name) for name in ("README.md", "adapter_config.json")]
    for path in dict.fromkeys([*others, *(path for path in own if (source / path).is_file())]):
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, work / path)


def _name(path: Path, count: int) -> str:
    if count == 1:
        stem = "adapter_model" if path.stem == "adapter_model" else "model"
        return f"{stem}.safetensors"
    match = _SET.fullmatch(path.name)
    return f"model-{match['part']}.safetensors" if match else f"{path.stem}.safetensors"


def _write_file(path: Path, target: Path, config: Mapping[str, Any], done: Converted) -> None:
    tensors = read_pickle(path)
    if twice := [name for name in tensors if name in done.weight_map]:
        raise RecipeError(
            f"`{path}`: `{twice[0]}` is in `{done.weight_map[twice[0]]}` as well",
            hint="keep the files of one checkpoint in the folder",
        )
    tied = _tied(tensors, keep_heads=config.get("tie_word_embeddings") is False)
    kept = {name: value for name, value in tensors.items() if name not in tied}
    entries = [
        (name, _dtype(path, name, value), tuple(value.shape)) for name, value in kept.items()
    ]
    # Loaders of the safetensors library find tied names there.
    header, starts, nbytes = header_text(entries, {"format": "pt", **tied})
    writer = ShardWriter(target.with_name(f"{target.name}.partial"), target, header, nbytes)
    try:
        for start, value in zip(starts, kept.values(), strict=True):
            _write_tensor(writer, start, value)
        writer.finish()
    finally:
        with suppress(OSError):
            writer.close()
    done.files.append(target.name)
    done.tied |= tied
    done.weight_map |= dict.fromkeys(kept, target.name)
    done.entries += sum(value.numel() for value in kept.values())
    done.nbytes += sum(value.numel() * value.element_size() for value in kept.values())


def _write_tensor(writer: ShardWriter, start: int, value: torch.Tensor) -> None:
    import torch

    if value.numel():
        plain = value.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
        writer.write(plain.numpy(), start)


def _tied(tensors: Mapping[str, torch.Tensor], *, keep_heads: bool) -> dict[str, str]:
    """Return which names are left out because another has the same numbers in the same memory.

    A head is left out before the embedding it is tied to; where the config says that they are not
    tied, loaders want both.
    """
    owners: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name in sorted(tensors, key=lambda name: role_of(name) == "head"):
        value = tensors[name]
        key = (value.untyped_storage().data_ptr(), value.storage_offset(), value.dtype,
               tuple(value.shape), value.stride())  # fmt: skip
        owner = owners.setdefault(key, name) if value.numel() else name
        if owner != name and not (keep_heads and role_of(name) == "head"):
            tied[name] = owner
    return tied


def _dtype(path: Path, name: str, value: torch.Tensor) -> str:
    import torch

    known = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
        torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
        torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
        torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
        torch.bool: "BOOL",
    }  # fmt: skip
    if value.dtype not in known:
        raise RecipeError(
            f"`{path}`: `{name}` is {value.dtype}, which safetensors does not know",
            hint="save it in another dtype",
        )
    return known[value.dtype]
