"""Whether patches are whole, and whether the base is the one they were made against."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from mergekit_lite.checkpoint.patch import SAME, Patch, parts_of
from mergekit_lite.engine.differences import digest_of
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.supplies import Slot, supply_of
from mergekit_lite.errors import DataError, Problem, RecipeError
from mergekit_lite.plan.digests import DigestCache, Stamp
from mergekit_lite.plan.types import Job, Read

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

_CHUNK = 1 << 20
_MANY = 20


def check_patches(models: Mapping[str, Model]) -> None:
    """Check the patches among the inputs of a plan, and of its stages, before it runs.

    That the base's entries are right is remembered until its files change.

    Args:
        models: the inputs by name.

    Raises:
        DataError: a patch is damaged; all of its damaged tensors are named.
        RecipeError: the base is not the one that a patch was made against; tensors that differ
            are named.
    """
    found = {name: model.adapter.patch for name, model in models.items() if model.adapter}
    patches = {name: patch for name, patch in found.items() if patch is not None}
    if patches:
        readers = Readers(models)
        try:
            _require_whole(patches, models, readers)
            _require_base(patches, models["base"], readers)
        finally:
            readers.close()
    for model in models.values():
        check_patches(model.parts)


def crc32_of(patch: Patch, name: str, source: str, readers: Readers, model: Model) -> str:
    """Return the checksum of what a patch stores of a tensor."""
    return f"{crc32_after(0, patch, name, source, readers, model):08x}"


def crc32_after(
    total: int, patch: Patch, name: str, source: str, readers: Readers, model: Model
) -> int:
    """Return a checksum carried on over what a patch stores of a tensor."""
    memory = np.empty(_CHUNK, np.uint8)
    for info in parts_of(name, patch.rows[name], model.header.tensors).values():
        for start in range(0, info.nbytes, _CHUNK):
            raw = memory[: min(_CHUNK, info.nbytes - start)]
            readers.read(source, info, start, raw)
            total = zlib.crc32(raw.data, total)
    return total


def _require_whole(
    patches: Mapping[str, Patch], models: Mapping[str, Model], readers: Readers
) -> None:
    problems = [
        Problem(
            f"what is stored of `{name}` has another checksum than it was written with",
            f"patch `{source}`",
            "the file is damaged: fetch it again, or make the patch anew",
        )
        for source, patch in patches.items()
        for name, row in patch.rows.items()
        if row.scheme != SAME
        and crc32_of(patch, name, source, readers, models[source]) != row.crc32
    ]
    if problems:
        raise DataError(problems)


def _require_base(patches: Mapping[str, Patch], base: Model, readers: Readers) -> None:
    cache, stamps = DigestCache(), dict(_stamps(base))
    digests: dict[str, str] = {}
    problems: list[Problem] = []
    for source, patch in patches.items():
        right = patch.fingerprint
        if stamps and all(cache.get(f"{path}#base", at) == right for path, at in stamps.items()):
            continue
        wrong = []
        for name, row in patch.rows.items():
            if name not in digests:
                digests[name] = base_digest(base, name, readers)
            if digests[name] != row.base:
                wrong.append(name)
        if wrong:
            problems += _differing(source, patch, wrong)
            continue
        for path, at in stamps.items():
            cache.put(f"{path}#base", at, right)
    if problems:
        raise RecipeError(problems)
    cache.save()


def base_digest(base: Model, name: str, readers: Readers) -> str:
    """Return the first 32 hexadecimal digits of the sha256 of a tensor of the base."""
    info = base.header.tensors[name]
    read = Read("base", name, nbytes=info.nbytes, made=info.is_made)
    job = Job(name, info.dtype, info.shape, 0, 0, "merge", (read,))
    return digest_of(Slot(read, supply_of(read, job, readers)), prod(info.shape))


def _differing(source: str, patch: Patch, wrong: list[str]) -> Iterator[Problem]:
    hint = f"use the base it was made against (`{patch.base}`), to the byte"
    for name in wrong[:_MANY]:
        yield Problem(f"`{name}` of the base is not what the patch was made against", source, hint)
    if len(wrong) > _MANY:
        yield Problem(f"and so are {len(wrong) - _MANY} more tensors", source)


def _stamps(model: Model) -> Iterator[tuple[str, Stamp]]:
    """Yield the files of a model that lies on this machine, as they are now."""
    if model.plan is not None:
        return
    for file in model.header.files:
        path = model.root if model.root.is_file() else model.root / file
        if not path.is_file():
            return
        status = os.stat(path)
        yield os.path.realpath(path), (status.st_size, status.st_mtime_ns, status.st_ino)
