"""Compresses an adapter into a patch: its factors, not what they make of the base's tensors."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.patch import SAME, WHOLE, Patch, PatchRow
from mergekit_lite.checkpoint.spool import Spool
from mergekit_lite.compress import Codec, Delta, Encoded, scheme_named
from mergekit_lite.compress._types import DTYPES, in_memory
from mergekit_lite.compress.schemes import product
from mergekit_lite.compress.survey import Found, largest, reach
from mergekit_lite.engine.adapted import factors_of
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.low_rank import product as multiplied
from mergekit_lite.engine.patch_base import base_digest
from mergekit_lite.errors import DataError, Problem, RecipeError
from mergekit_lite.patches.place import making_file
from mergekit_lite.plan.types import Job, Plan, Read

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

Floats = NDArray[np.float32]
_TILE = 1 << 18


@dataclass(frozen=True)
class _Pair:
    """The factors of one tensor of the base, as the base's weight is stored."""

    job: Job
    left: Floats
    right: Floats
    scale: np.float32


def compress_adapter(
    plan: Plan,
    models: Mapping[str, Model],
    out: Path,
    codec: Codec,
    params: Mapping[str, Any],
    *,
    overwrite: bool = False,
    emit: Callable[[Event], None],
) -> Patch:
    """Write the patch of a LoRA adapter: both factors of each pair through a codec.

    All factors are in memory. A codec that looks at the whole model sees all factors together.

    Args:
        plan: of `base` and the adapter `tuned`.
        models: both, opened.
        out: the file to make.
        codec: how factors are compressed.
        params: all of its parameters.
        overwrite: replace a file that is there.
        emit: told of progress.

    Raises:
        RecipeError: `out` does not fit, the adapter is more than pairs of factors and whole
            tensors, or the codec would keep nothing.
        DataError: an input is not finite.
    """
    _require_plain(plan)
    readers = Readers(models)
    try:
        pairs = {job.name: _pair(job, read, readers) for job, read in _adapted(plan)}
        found = _survey(list(pairs.values()), codec, params)
        facts = _compared(pairs, codec, params)
        with (
            making_file(plan, out, overwrite=overwrite, emit=emit) as file,
            Spool(file.parent) as spool,
        ):
            work = _Work(readers, models, codec, params, found, facts, spool)
            rows = {}
            for number, job in enumerate(plan.jobs):
                rows[job.name] = work.row(job, pairs.get(job.name))
                event = Event("progress", name=job.name, bytes_read=number + 1)
                emit(replace(event, bytes_total=len(plan.jobs)))
            reference = plan.inputs["base"].reference
            named = reference if ":" in reference else Path(reference).name
            patch = Patch(codec.name, params, named, rows)
            spool.finish(file, {"format": "pt", **patch.metadata()})
    finally:
        readers.close()
    return patch


def _require_plain(plan: Plan) -> None:
    reads = [(job.name, read) for job in plan.jobs for read in job.reads if read.lora is not None]
    problems = [
        Problem(
            f"`{name}` has {read.lora.kind}, which is no plain pair of factors",
            hint="merge the adapter into its base with `run`, and compress the model",
        )
        for name, read in reads
        if read.lora is not None and not read.zero and not read.lora.is_plain
    ]
    if problems:
        raise RecipeError(problems)


def _adapted(plan: Plan) -> Iterator[tuple[Job, Read]]:
    for job in plan.jobs:
        for read in job.reads:
            if read.lora is not None and not read.zero:
                yield job, read


def _pair(job: Job, read: Read, readers: Readers) -> _Pair:
    left, right, scale = factors_of(read, readers)
    for factor in (left, right):
        if not np.isfinite(factor).all():
            what = f"a factor of `{job.name}` holds NaN or infinity"
            raise DataError(what, read.source, "the adapter is broken: fetch or train it again")
    return _Pair(job, np.ascontiguousarray(left), np.ascontiguousarray(right), scale)


def _survey(pairs: list[_Pair], codec: Codec, params: Mapping[str, Any]) -> Found | None:
    """Find what is kept of all factors together, for a codec that asks."""
    if not codec.keep:
        return None
    whole = np.concatenate([f.reshape(-1) for pair in pairs for f in (pair.left, pair.right)])
    kept = int(float(params[codec.keep]) * whole.size)
    if kept < 1:
        what = f"`{codec.keep}` {params[codec.keep]:g} of {whole.size:,} entries is less than one"
        raise RecipeError(what, hint=f"keep {1 / whole.size:.2g} at least")
    found = largest(whole, kept)
    if found.kept and found.std == 0:
        raise DataError(
            "all entries of all factors are the same number, so their standard deviation is 0",
            hint="compress with `intq`, which keeps it",
        )
    return found


def _sides(pair: _Pair) -> Iterator[tuple[str, Floats]]:
    yield "left", pair.left
    yield "right", pair.right


def _compared(
    pairs: Mapping[str, _Pair], codec: Codec, params: Mapping[str, Any]
) -> Mapping[str, Mapping[str, float]]:
    if codec.compares is None:
        return {}
    looked: dict[str, Mapping[str, float]] = {}
    for name, pair in pairs.items():
        for side, factor in _sides(pair):
            told = codec.compares.look(Delta(name, factor.shape, factor.reshape(-1)), params)
            looked |= {f"{name}:{side}": told} if told is not None else {}
    return codec.compares.decide(looked, params)


@dataclass
class _Work:
    """One patch being made; `found.ties` is what is left of them."""

    readers: Readers
    models: Mapping[str, Model]
    codec: Codec
    params: Mapping[str, Any]
    found: Found | None
    facts: Mapping[str, Mapping[str, float]]
    spool: Spool
    taken: int = 0

    def row(self, job: Job, pair: _Pair | None) -> PatchRow:
        """Store what the adapter makes of a tensor, and say how."""
        info = self.models["base"].header.tensors[job.name]
        digest = base_digest(self.models["base"], job.name, self.readers)
        own = next((read for read in job.reads if read.source == "tuned"), None)
        row = PatchRow(info.dtype, job.shape, digest, SAME)
        if pair is not None:
            return self._product(row, pair)
        if own is None or own.zero:
            return row
        stored = self.readers.info("tuned", own.name)
        if stored.shape != job.shape:
            what = f"is {list(stored.shape)} in the adapter, {list(job.shape)} in the base"
            raise RecipeError(what, job.name, "only adapters of the base's shapes are compressed")
        raw = np.empty(stored.nbytes, np.uint8)
        self.readers.read("tuned", stored, 0, raw)
        self.spool.add(job.name, stored.dtype, stored.shape, raw)
        return replace(row, scheme=WHOLE, crc32=f"{zlib.crc32(raw.data):08x}")

    def _product(self, row: PatchRow, pair: _Pair) -> PatchRow:
        name, rank = pair.job.name, pair.left.shape[1]
        left, right = (self._factor(name, side, factor) for side, factor in _sides(pair))
        encoded = product.encoded(left, right, rank, float(pair.scale))
        total = 0
        for key, value in sorted(encoded.parts.items()):
            raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            self.spool.add(f"{name}:{key}", DTYPES[value.dtype.name], value.shape, raw)
            total = zlib.crc32(raw.data, total)
        norm, error = _missed(pair, encoded)
        return replace(
            row,
            scheme=encoded.scheme,
            crc32=f"{total:08x}",
            norm=norm,
            error=error,
            numbers=dict(encoded.numbers),
        )

    def _factor(self, name: str, side: str, factor: Floats) -> Encoded:
        values = factor.reshape(-1)
        if not values.any():
            return product.plain(values)
        facts = self.facts.get(f"{name}:{side}", {})
        delta = Delta(name, factor.shape, values, facts=facts)
        if self.found is not None:
            above, equal = reach(values, self.found.threshold)
            ties = min(self.found.ties - self.taken, equal)
            self.taken += ties
            delta = replace(delta, found=self.found, kept=above + ties, ties=ties)
        encoded = self.codec.encode(delta, **self.params)
        return product.plain(values) if encoded is None else encoded


def _missed(pair: _Pair, encoded: Encoded) -> tuple[float, float]:
    """Return the norms of the product of the factors, and of what is missed of it."""
    packed, fetch = in_memory(encoded, pair.job.name, pair.job.shape)
    decoder = scheme_named(encoded.scheme).decoder(packed, fetch)
    exact = multiplied(pair.left, pair.right, pair.scale)
    squares, missed = [], []
    size = math.prod(pair.job.shape)
    for first in range(0, size, _TILE):
        count = min(_TILE, size - first)
        own, stored = np.empty(count, np.float32), np.empty(count, np.float32)
        exact.fill(first, count, own.view(np.uint8))
        decoder.fill(first, stored)
        squares.append(float(np.square(own, dtype=np.float64).sum()))
        missed.append(float(np.square(own.astype(np.float64) - stored).sum()))
    return math.sqrt(math.fsum(squares)), math.sqrt(math.fsum(missed))
