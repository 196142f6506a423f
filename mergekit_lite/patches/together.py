"""Compresses one expert of several against what they share: residual task vector quantisation."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES, FLOAT_DTYPES
from mergekit_lite.checkpoint.patch import SAME, WHOLE, Packed, Patch, PatchRow
from mergekit_lite.checkpoint.patch_shared import DIGEST, FILE, description_digest
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.compress import Delta, Encoded, codec_named, scheme_named
from mergekit_lite.compress._types import DTYPES, in_memory
from mergekit_lite.compress.schemes import summed
from mergekit_lite.engine.differences import difference_of
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.patch_base import base_digest, crc32_after
from mergekit_lite.engine.supplies import Stored
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.patches.place import making_file
from mergekit_lite.plan.types import Job, Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

_SHARED = "shared"


def compress_beside(
    plan: Plan,
    models: Mapping[str, Model],
    shared: Model,
    out: Path,
    params: Mapping[str, Any],
    *,
    overwrite: bool = False,
    emit: Callable[[Event], None],
) -> Patch:
    """Write the patch of an expert that names another for what it shares with others.

    What is rounded is the expert's difference less what the shared patch decodes to, so that the
    error of that is made up for. One tensor's difference at a time is in memory.

    Args:
        plan: of `base` and the expert `tuned`.
        models: both, opened.
        shared: the shared patch, of the same base, in the folder of `out`.
        out: the file to make.
        params: of `tvq`, which rounds.
        overwrite: replace a file that is there.
        emit: told of progress.

    Raises:
        RecipeError: `out` does not fit, or the models differ in more than numbers.
        DataError: an input is not finite.
    """
    patch = shared.adapter.patch if shared.adapter is not None else None
    if patch is None:
        raise RecipeError("is not a patch", shared.reference)
    readers = Readers({**models, _SHARED: shared})
    try:
        with (
            making_file(plan, out, overwrite=overwrite, emit=emit) as file,
            Spool(file.parent) as spool,
        ):
            work = _Work(readers, models, shared, patch, params, spool)
            rows = {}
            for number, job in enumerate(plan.jobs):
                rows[job.name] = work.row(job)
                event = Event("progress", name=job.name, bytes_read=number + 1)
                emit(replace(event, bytes_total=len(plan.jobs)))
            beside = {FILE: shared.root.name, DIGEST: description_digest(shared.header.metadata)}
            made = Patch("rtvq", {**params, **beside}, patch.base, rows)
            spool.finish(file, {"format": "pt", **made.metadata()})
    finally:
        readers.close()
    return made


@dataclass
class _Work:
    """One patch being made."""

    readers: Readers
    models: Mapping[str, Model]
    shared: Model
    patch: Patch
    params: Mapping[str, Any]
    spool: Spool
    memory: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def row(self, job: Job) -> PatchRow:
        """Store what an expert has of a tensor, and say how."""
        info = self.models["base"].header.tensors[job.name]
        if job.dtype not in FLOAT_DTYPES:
            digest = base_digest(self.models["base"], job.name, self.readers)
            return self._other(job, PatchRow(info.dtype, job.shape, digest, SAME))
        difference, digest_of_base = difference_of(job, self.readers), sha256()
        if difference.size > self.memory.size:
            self.memory = np.empty(difference.size, np.float32)
        values = difference.whole(self.memory, digest_of_base)
        norm = math.sqrt(_squares(values))
        row = PatchRow(info.dtype, job.shape, digest_of_base.hexdigest()[:32], SAME, norm=norm)
        beside = self._shared(job.name)
        if beside is None and not norm:
            return row
        if beside is not None:
            values -= self._decoded(beside, partial(self.readers.read, _SHARED), values.size)
        codec = codec_named("tvq")
        own = codec.encode(Delta(job.name, job.shape, values), **self.params)
        if own is None:
            raise DataError("`tvq` has not compressed it", job.name)
        values -= self._decoded(*in_memory(own, job.name, job.shape), values.size)
        row = replace(row, error=math.sqrt(_squares(values)))
        return self._stored(job.name, own if beside is None else summed.encoded(beside, own), row)

    def _shared(self, name: str) -> Packed | None:
        if self.patch.rows[name].scheme in (SAME, WHOLE):
            return None
        return self.readers.packed(_SHARED, name)

    @staticmethod
    def _decoded(packed: Packed, fetch: Any, size: int) -> NDArray[np.float32]:
        out = np.empty(size, np.float32)
        scheme_named(packed.scheme).decoder(packed, fetch).fill(0, out)
        return out

    def _stored(self, name: str, encoded: Encoded, row: PatchRow) -> PatchRow:
        """Store the own parts; the checksum goes on over the shared ones, which come after."""
        total = 0
        for key, value in sorted(encoded.parts.items()):
            raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            self.spool.add(f"{name}:{key}", DTYPES[value.dtype.name], value.shape, raw)
            total = zlib.crc32(raw.data, total)
        if encoded.scheme.startswith("sum("):
            total = crc32_after(total, self.patch, name, _SHARED, self.readers, self.shared)
        numbers = dict(encoded.numbers)
        return replace(row, scheme=encoded.scheme, crc32=f"{total:08x}", numbers=numbers)

    def _other(self, job: Job, row: PatchRow) -> PatchRow:
        """Store a tensor that is no float where it differs."""
        mine = self.models["tuned"].header.tensors.get(job.name)
        info = self.models["base"].header.tensors[job.name]
        if mine is None:
            return row
        if (mine.dtype, mine.shape) != (info.dtype, info.shape):
            raise RecipeError("differs in dtype or shape", job.name, "compress models of one shape")
        raw = np.empty(mine.size * DTYPE_BYTES[mine.dtype], np.uint8)
        Stored(self.readers, "tuned", mine).fill(0, mine.size, raw)
        if sha256(raw.data).hexdigest()[:32] == row.base:
            return row
        self.spool.add(job.name, mine.dtype, mine.shape, raw)
        return replace(row, scheme=WHOLE, crc32=f"{zlib.crc32(raw.data):08x}")


def _squares(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())
