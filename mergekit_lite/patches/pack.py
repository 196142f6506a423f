"""Compresses what several fine-tunes add to one base into a store, tensor by tensor."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES, FLOAT_DTYPES
from mergekit_lite.checkpoint.patch import WHOLE, PatchRow
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.checkpoint.store import Place, Store
from mergekit_lite.compress import Delta, Encoded, decoding_kernels
from mergekit_lite.compress._types import DTYPES
from mergekit_lite.compress.stores import Deltas, StoreMethod
from mergekit_lite.compress.survey import Found, Survey, reach
from mergekit_lite.engine.differences import Difference, supply
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.options import Options
from mergekit_lite.engine.patch_base import base_digest
from mergekit_lite.engine.supplies import Slot, Stored, slots_of
from mergekit_lite.engine.warming import compile_missing
from mergekit_lite.errors import RecipeError
from mergekit_lite.kernels import survey
from mergekit_lite.kernels.rice import rice_encode
from mergekit_lite.patches.place import making_file
from mergekit_lite.patches.row import Row, finished
from mergekit_lite.plan.types import Job, Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


def pack(
    plan: Plan,
    models: Mapping[str, Model],
    out: Path,
    method: StoreMethod,
    params: Mapping[str, Any],
    *,
    overwrite: bool = False,
    emit: Callable[[Event], None],
) -> Store:
    """Write the store that turns a base into each of its fine-tunes, as nearly as a method can.

    The differences of one tensor to all fine-tunes are in memory together.

    Args:
        plan: of `base` and the experts: its rows say which tensors belong together.
        models: its inputs, opened.
        out: the file to make.
        method: how differences are compressed.
        params: all of its parameters.
        overwrite: replace a file that is there.
        emit: told of progress.

    Returns:
        The description of the store.

    Raises:
        RecipeError: `out` does not fit, or the method would keep nothing.
        DataError: an input is not finite, or nothing differs or is left of one.
    """
    sweeps = [survey.difference_tile, survey.survey_tile, survey.refine_tile, survey.reach_tile]
    compile_missing([*sweeps, rice_encode, *decoding_kernels()], Options(), emit)
    readers = Readers(models)
    try:
        with making_file(plan, out, overwrite=overwrite, emit=emit) as file:
            work = _Work(plan, models, readers, method, params, emit)
            with Spool(file.parent) as spool:
                store = work.store(spool)
                spool.finish(file, {"format": "pt", **store.metadata()})
    finally:
        readers.close()
    return store


@dataclass
class _Work:
    """One store being made."""

    plan: Plan
    models: Mapping[str, Model]
    readers: Readers
    method: StoreMethod
    params: Mapping[str, Any]
    emit: Callable[[Event], None]
    done: int = 0
    left: dict[str, int] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return [name for name in self.models if name != "base"]

    def store(self, spool: Spool) -> Store:
        """Compress all tensors; what is stored goes into `spool`."""
        found = {task: self._survey(task) for task in self.tasks} if self.method.keep else {}
        self.left = {task: one.ties for task, one in found.items()}
        rows: dict[str, dict[str, Row]] = {task: {} for task in self.tasks}
        for job in self.plan.jobs:
            float_row = job.dtype in FLOAT_DTYPES
            made = self._float(job, found, spool) if float_row else self._other(job, spool)
            for task, row in made.items():
                rows[task][job.name] = row
            self._tell(job)
        tasks: dict[str, dict[str, PatchRow]] = {}
        for task, own in rows.items():
            tasks[task] = finished(task, own, rescaled=self.method.rescaled)
        base = self.plan.inputs["base"].reference
        named = base if ":" in base else Path(base).name
        return Store(self.method.name, self.params, named, tasks)

    def _survey(self, task: str) -> Found:
        """Find what is kept of a task's whole model, in two sweeps."""
        sweep = Survey()
        keep = float(self.params[self.method.keep])
        floats = [job for job in self.plan.jobs if job.dtype in FLOAT_DTYPES]
        for look in (sweep.look, sweep.refine):
            for job in floats:
                difference = self._sides(job)[1].get(task)
                tiles = difference.tiles() if difference else [np.zeros(prod(job.shape), "f4")]
                for tile in tiles:
                    look(tile)
                self._tell(job)
            if look == sweep.look:
                kept = int(keep * sweep.entries)
                if kept < 1:
                    raise RecipeError(
                        f"`{self.method.keep}` {keep:g} of {sweep.entries:,} entries is less"
                        " than one",
                        hint=f"keep {1 / max(sweep.entries, 1):.2g} at least",
                    )
                sweep.choose(kept)
        return sweep.found()

    def _sides(self, job: Job) -> tuple[Slot, dict[str, Difference]]:
        """Return the base of a row, and its difference to every task that has one."""
        base, *others = slots_of(job, self.readers)
        found = {slot.read.source: Difference(job, base, slot) for slot in others if slot.supply}
        return base, {task: found[task] for task in self.tasks if task in found}

    def _float(self, job: Job, found: Mapping[str, Found], spool: Spool) -> dict[str, Row]:
        base, sides = self._sides(job)
        info = self.models["base"].header.tensors[base.read.name or job.name]
        digest, deltas = sha256(), dict[str, Delta]()
        for number, (task, difference) in enumerate(sides.items()):
            memory = np.empty(difference.size, np.float32)
            values = difference.whole(memory, None if number else digest)
            if reach(values, 0)[0]:
                deltas[task] = self._delta(task, Delta(job.name, job.shape, values), found)
        known = digest.hexdigest()[:32]
        if not sides:
            known = base_digest(self.models["base"], info.name, self.readers)
        row = Row(info.dtype, job.shape, known)
        rows = dict.fromkeys(self.tasks, row)
        if not deltas:
            return rows
        joint = self.method.encode(Deltas(deltas, len(self.tasks)), **self.params)
        for key, value in joint.shared.items():
            _add(spool, Place(job.name, key), value)
        for task, encoded in joint.tasks.items():
            if encoded is None:
                rows[task] = _whole(job, sides[task].tuned, task, row, spool)
                rows[task].measure(deltas[task].values)
                continue
            for key, value in encoded.parts.items():
                _add(spool, Place(job.name, key, task), value)
            every = replace(encoded, parts={**joint.shared, **encoded.parts})
            rows[task] = row.told(encoded.scheme, _crc(every), encoded.numbers)
            rows[task].measure(deltas[task].values, every, job.name)
        return rows

    def _delta(self, task: str, delta: Delta, found: Mapping[str, Found]) -> Delta:
        """Return a difference with what is kept of it, for a method that asks for it."""
        if task not in found:
            return delta
        above, equal = reach(delta.values, found[task].threshold)
        ties = min(self.left[task], equal)
        self.left[task] -= ties
        return replace(delta, found=found[task], kept=above + ties, ties=ties)

    def _other(self, job: Job, spool: Spool) -> dict[str, Row]:
        """Store a tensor that is no float for each task where it differs."""
        info = self.models["base"].header.tensors[job.name]
        raw = np.empty(info.nbytes, np.uint8)
        Stored(self.readers, "base", info).fill(0, info.size, raw)
        row = Row(info.dtype, job.shape, sha256(raw.data).hexdigest()[:32])
        rows = dict.fromkeys(self.tasks, row)
        for task in self.tasks:
            mine = self.models[task].header.tensors.get(job.name)
            if mine is None:
                continue
            if (mine.dtype, mine.shape) != (info.dtype, info.shape):
                told = f"{mine.dtype} {list(mine.shape)}"
                what = f"is {told}, the base's {info.dtype} {list(info.shape)}"
                hint = "only models of one shape can be packed"
                raise RecipeError(what, f"{task}: {job.name}", hint)
            own = np.empty(mine.nbytes, np.uint8)
            Stored(self.readers, task, mine).fill(0, mine.size, own)
            if not np.array_equal(raw, own):
                spool.add(Place(job.name, "whole", task).stored, mine.dtype, mine.shape, own)
                rows[task] = row.told(WHOLE, f"{zlib.crc32(own.data):08x}")
        return rows

    def _tell(self, job: Job) -> None:
        self.done += 1
        sweeps = 1 + 2 * len(self.tasks) * bool(self.method.keep)
        total = len(self.plan.jobs) * sweeps
        self.emit(Event("progress", name=job.name, bytes_read=self.done, bytes_total=total))


def _whole(job: Job, tuned: Slot, task: str, row: Row, spool: Spool) -> Row:
    raw = np.empty(prod(job.shape) * DTYPE_BYTES[tuned.dtype], np.uint8)
    supply(tuned).fill(0, prod(job.shape), raw)
    spool.add(Place(job.name, "whole", task).stored, tuned.dtype, job.shape, raw)
    return row.told(WHOLE, f"{zlib.crc32(raw.data):08x}")


def _add(spool: Spool, place: Place, value: NDArray[Any]) -> None:
    spool.add(place.stored, DTYPES[value.dtype.name], value.shape, _bytes(value))


def _crc(encoded: Encoded) -> str:
    """Return the checksum of all parts, one after the other by name."""
    total = 0
    for _, value in sorted(encoded.parts.items()):
        total = zlib.crc32(_bytes(value).data, total)
    return f"{total:08x}"


def _bytes(value: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
