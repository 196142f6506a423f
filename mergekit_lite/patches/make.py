"""Compresses what a fine-tune adds to its base into a patch, tensor by tensor."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES, FLOAT_DTYPES
from mergekit_lite.checkpoint.patch import SAME, WHOLE, Patch, PatchRow
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.compress import Codec, Delta, Encoded, decoding_kernels, scheme_named
from mergekit_lite.compress._spec import Facts
from mergekit_lite.compress._types import DTYPES, in_memory
from mergekit_lite.compress.survey import Found, Survey, reach
from mergekit_lite.engine.differences import TILE, Difference, Digest, difference_of, supply
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.options import Options
from mergekit_lite.engine.supplies import Slot, Stored, slots_of
from mergekit_lite.engine.warming import compile_missing
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.kernels import survey
from mergekit_lite.kernels._jit import Kernel
from mergekit_lite.kernels.rice import rice_encode
from mergekit_lite.kernels.survey import BLOCK, error_tile
from mergekit_lite.patches.grams import Grams, read_grams
from mergekit_lite.patches.place import making_file
from mergekit_lite.plan.types import Job, Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model


_SAMPLED = 1 << 19
"""Of so many entries some are looked at to tell where the threshold will be."""


def compress(
    plan: Plan,
    models: Mapping[str, Model],
    out: Path,
    codec: Codec,
    params: Mapping[str, Any],
    *,
    overwrite: bool = False,
    calibration: Path | None = None,
    emit: Callable[[Event], None],
) -> Patch:
    """Write the patch that turns a base into its fine-tune, as nearly as the codec can.

    One tensor's difference at a time is in memory.

    Args:
        plan: of `base` and one expert: its rows say which tensors belong together.
        models: its inputs, opened.
        out: the file to make.
        codec: how differences are compressed.
        params: all of its parameters.
        overwrite: replace a file that is there.
        calibration: folder of Gram matrices, for a codec that makes use of them.
        emit: told of progress.

    Returns:
        The description of the patch.

    Raises:
        RecipeError: `out` does not fit, or the codec would keep nothing.
        DataError: an input is not finite, or nothing differs.
    """
    grams = read_grams(calibration, plan.jobs, emit) if calibration is not None else Grams()
    compile_missing(_kernels(), Options(), emit)
    readers = Readers(models)
    try:
        with making_file(plan, out, overwrite=overwrite, emit=emit) as file:
            work = _Work(plan, models, readers, codec, params, grams, emit)
            with Spool(file.parent) as spool:
                patch = work.patch(spool)
                spool.finish(file, {"format": "pt", **patch.metadata()})
    finally:
        readers.close()
    return patch


def _same() -> DataError:
    what = "the model is its base: no tensor differs"
    return DataError(what, hint="check which models were given")


def _kernels() -> list[Kernel]:
    """Return what is called, so that all is compiled at once."""
    sweeps = [survey.difference_tile, survey.survey_tile, survey.refine_tile, survey.reach_tile]
    return [*sweeps, survey.error_tile, rice_encode, *decoding_kernels()]


@dataclass
class _Work:
    """One patch being made."""

    plan: Plan
    models: Mapping[str, Model]
    readers: Readers
    codec: Codec
    params: Mapping[str, Any]
    grams: Grams
    emit: Callable[[Event], None]
    done: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)
    # Used for one tensor after the other: new memory takes as long as what is done in it.
    memory: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def patch(self, spool: Spool) -> Patch:
        """Compress all tensors; what is stored goes into `spool`."""
        if all(read.zero for job in self.plan.jobs if job.kind == "merge" for read in job.reads):
            raise _same()
        found = self._survey() if self.codec.keep else None
        facts = self._compared()
        left = found.ties if found is not None else 0
        rows: dict[str, PatchRow] = {}
        for job in self.plan.jobs:
            if job.dtype in FLOAT_DTYPES:
                rows[job.name], used = self._float(job, found, left, facts.get(job.name, {}), spool)
                left -= used
            else:
                rows[job.name] = self._other(job, spool)
            self._tell(job)
        if all(row.scheme == SAME for row in rows.values()):
            raise _same()
        base = self.plan.inputs["base"].reference
        named = base if ":" in base else Path(base).name
        return Patch(self.codec.name, self.params, named, rows)

    def _values(self, difference: Difference, digest: Digest | None) -> NDArray[np.float32]:
        if difference.size > self.memory.size:
            self.memory = np.empty(difference.size, np.float32)
        return difference.whole(self.memory, digest)

    def _compared(self) -> Mapping[str, Facts]:
        """Let a codec look at all tensors, if it asks to, and decide for each."""
        if self.codec.compares is None:
            return {}
        looked: dict[str, Facts] = {}
        for job in self.plan.jobs:
            if job.dtype in FLOAT_DTYPES:
                digest = sha256()
                values = self._values(difference_of(job, self.readers), digest)
                self.digests[job.name] = digest.hexdigest()[:32]
                delta = Delta(job.name, job.shape, values)
                facts = self.codec.compares.look(delta, self.params) if values.any() else None
                looked |= {job.name: facts} if facts is not None else {}
            self._tell(job)
        return self.codec.compares.decide(looked, self.params)

    def _survey(self) -> Found:
        """Find what is kept of the whole model, in one sweep or two."""
        sweep = Survey()
        floats = [job for job in self.plan.jobs if job.dtype in FLOAT_DTYPES]
        keep = float(self.params[self.codec.keep])
        sweep.guess(self._sample(floats), keep)
        self._look(sweep, floats)
        kept = int(keep * sweep.entries)
        if kept < 1:
            raise RecipeError(
                f"`{self.codec.keep}` {keep:g} of {sweep.entries:,} entries is less than one",
                hint=f"keep {1 / max(sweep.entries, 1):.2g} at least",
            )
        if not sweep.counts_enough(kept):
            self._look(sweep, floats)
        sweep.choose(kept)
        if not sweep.knows or self.params.get("scale", "std") != "std":
            for job in floats:
                for tile in difference_of(job, self.readers).tiles():
                    sweep.refine(tile)
                self._tell(job)
        found = sweep.found()
        if found.kept and found.std == 0:
            raise DataError(
                "all entries differ by the same number, so their standard deviation is 0",
                hint="compress with `intq`, which keeps it, or `topk_sparse`",
            )
        return found

    def _look(self, sweep: Survey, floats: Sequence[Job]) -> None:
        for job in floats:
            digest = None if job.name in self.digests else sha256()
            tiles = difference_of(job, self.readers).tiles(digest)
            self.squares[job.name] = math.fsum(sweep.look(tile) for tile in tiles)
            if digest is not None:
                self.digests[job.name] = digest.hexdigest()[:32]
            self._tell(job)

    def _sample(self, floats: Sequence[Job]) -> Iterator[tuple[float, NDArray[np.float32]]]:
        """Yield some of the difference of every tensor, with how many entries one stands for."""
        for job in floats:
            difference = difference_of(job, self.readers)
            tiles = [tile.copy() for tile in difference.tiles(step=_SAMPLED)]
            if tiles:
                sample = np.concatenate(tiles)
                yield difference.size / sample.size, sample

    def _float(
        self, job: Job, found: Found | None, left: int, facts: Facts, spool: Spool
    ) -> tuple[PatchRow, int]:
        """Return what is said of a tensor, and how many entries at the threshold it has taken."""
        difference = difference_of(job, self.readers)
        base = difference.base.read
        info = self.models["base"].header.tensors[base.name or job.name]
        digest = sha256()
        known = self.digests.get(job.name)
        values = self._values(difference, None if known else digest)
        row = _Row(info.dtype, job.shape, known or digest.hexdigest()[:32])
        squares = self.squares.get(job.name)
        if squares == 0 or (squares is None and reach(values, 0)[0] == 0):
            return row.told(SAME), 0
        delta = Delta(
            job.name, job.shape, values, facts=facts, gram=self.grams.of(job), squares=squares
        )
        if found is not None:
            above, equal = reach(values, found.threshold)
            ties = min(left, equal)
            delta = replace(delta, found=found, kept=above + ties, ties=ties)
        encoded = self.codec.encode(delta, **self.params)
        if encoded is None:
            norm = math.sqrt(_squares(values, None)[0])
            return self._whole(job, difference.tuned, row, norm, spool), delta.ties
        return _stored(delta, encoded, row, spool), delta.ties

    def _whole(self, job: Job, tuned: Slot, row: _Row, norm: float, spool: Spool) -> PatchRow:
        raw = np.empty(math.prod(job.shape) * DTYPE_BYTES[tuned.dtype], np.uint8)
        supply(tuned).fill(0, math.prod(job.shape), raw)
        spool.add(job.name, tuned.dtype, job.shape, raw)
        return row.told(WHOLE, crc32=_crc([raw]), norm=norm)

    def _other(self, job: Job, spool: Spool) -> PatchRow:
        """Store a tensor that is no float where it differs."""
        info = self.models["base"].header.tensors[job.name]
        base = slots_of(job, self.readers)[1]
        raw = np.empty(info.nbytes, np.uint8)
        supply(base).fill(0, math.prod(job.shape), raw)
        row = _Row(info.dtype, job.shape, sha256(raw.data).hexdigest()[:32])
        source = next(name for name in self.models if name != "base")
        mine = self.models[source].header.tensors.get(job.name)
        if mine is None:
            return row.told(SAME)
        if (mine.dtype, mine.shape) != (info.dtype, info.shape):
            what = f"is {mine.dtype} {list(mine.shape)}, the base's {info.dtype} {list(info.shape)}"
            raise RecipeError(what, job.name, "only models of one shape can be compressed")
        own = np.empty(mine.nbytes, np.uint8)
        Stored(self.readers, source, mine).fill(0, mine.size, own)
        if np.array_equal(raw, own):
            return row.told(SAME)
        spool.add(job.name, mine.dtype, mine.shape, own)
        return row.told(WHOLE, crc32=_crc([own]))

    def _tell(self, job: Job) -> None:
        self.done += 1
        sweeps = 3 if self.codec.keep else 2 if self.codec.compares else 1
        total = len(self.plan.jobs) * sweeps
        self.emit(Event("progress", name=job.name, bytes_read=self.done, bytes_total=total))


@dataclass(frozen=True)
class _Row:
    """What is known of a tensor before it is compressed."""

    dtype: str
    shape: tuple[int, ...]
    base: str

    def told(self, scheme: str, **facts: Any) -> PatchRow:
        return PatchRow(self.dtype, self.shape, self.base, scheme, **facts)


def _stored(delta: Delta, encoded: Encoded, row: _Row, spool: Spool) -> PatchRow:
    """Store a compressed difference, and say what it misses."""
    name, squares, missed = delta.name, delta.squares, encoded.missed
    if squares is None or missed is None:
        squares, missed = _squares(delta.values, _decoder(name, encoded, row.shape))
    parts = []
    for key, value in sorted(encoded.parts.items()):
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        spool.add(f"{name}:{key}", DTYPES[value.dtype.name], value.shape, raw)
        parts.append(raw)
    return row.told(
        encoded.scheme,
        crc32=_crc(parts),
        norm=math.sqrt(squares),
        error=math.sqrt(missed),
        numbers=dict(encoded.numbers),
    )


def _decoder(name: str, encoded: Encoded, shape: tuple[int, ...]) -> Any:
    packed, fetch = in_memory(encoded, name, shape)
    return scheme_named(encoded.scheme).decoder(packed, fetch)


def _squares(values: NDArray[np.float32], decoder: Any) -> tuple[float, float]:
    """Return the sums of squares of a difference, and of what is missed of it."""
    sums = []
    decoded, work = np.zeros(min(TILE, values.size), np.float32), np.empty((2, BLOCK), np.float32)
    for first in range(0, values.size, TILE):
        part = values[first : first + TILE]
        if decoder is not None:
            decoder.fill(first, decoded[: part.size])
        both = np.zeros(2, np.float64)
        error_tile(part, decoded[: part.size], work, both)
        sums.append(both)
    return math.fsum(s[0] for s in sums), math.fsum(s[1] for s in sums)


def _crc(parts: list[NDArray[np.uint8]]) -> str:
    total = 0
    for raw in parts:
        total = zlib.crc32(raw.data, total)
    return f"{total:08x}"
