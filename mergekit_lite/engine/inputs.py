"""Open weight files, and the memory that tiles of a row's inputs are brought into."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES, TensorInfo
from mergekit_lite.errors import DataError
from mergekit_lite.plan.row_memory import TILE_ENTRIES

if TYPE_CHECKING:
    from mergekit_lite.checkpoint.reader import Reader
    from mergekit_lite.engine.stage_parts import StageParts
    from mergekit_lite.engine.supplies import Slot
    from mergekit_lite.plan.row_maps import RowMap
    from mergekit_lite.plan.types import Job, Plan
    from mergekit_lite.sources import Model

SLOT_ALIGNMENT = 4096
CACHE_LINE = 64


class Traffic:
    """Counts bytes moved, each thread in a counter of its own."""

    def __init__(self) -> None:
        self._read: dict[int, int] = {}
        self._written: dict[int, int] = {}

    def add_read(self, nbytes: int) -> None:
        """Note bytes that this thread has read."""
        thread = threading.get_ident()
        self._read[thread] = self._read.get(thread, 0) + nbytes

    def add_written(self, nbytes: int) -> None:
        """Note bytes that this thread has written."""
        thread = threading.get_ident()
        self._written[thread] = self._written.get(thread, 0) + nbytes

    def read_here(self) -> int:
        """Return how many bytes the calling thread has read."""
        return self._read.get(threading.get_ident(), 0)

    @property
    def read(self) -> int:
        """Bytes read by all threads, every sweep counted."""
        return sum(list(self._read.values()))

    @property
    def written(self) -> int:
        """Bytes of output tensors written by all threads."""
        return sum(list(self._written.values()))


class Readers:
    """Every weight file of a plan's models, opened once and shared by all workers.

    Args:
        models: the plan's inputs by name.
        row_maps: of the plan.
        tile: entries of a tile of what a stage computes.
        keep: bytes of a stage's inputs that may be kept between the sweeps of one of its rows.
        allow_nonfinite: let NaN and infinity of a stage pass.
        stages: takes down what experts inside stages gave; None where nobody asks.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        row_maps: Mapping[str, RowMap] | None = None,
        *,
        tile: int = TILE_ENTRIES,
        keep: int = 0,
        allow_nonfinite: bool = False,
        stages: StageParts | None = None,
    ) -> None:
        self._models = models
        self.stages = stages
        self.row_maps = row_maps or {}
        self.tile, self.keep, self.allow_nonfinite = tile, keep, allow_nonfinite
        self._within: dict[str, Readers] = {}
        self._jobs: dict[str, dict[str, Job]] = {}
        self._open: dict[tuple[str, str], Reader] = {}
        self._lock = threading.Lock()
        self.traffic = Traffic()

    def info(self, source: str, name: str) -> TensorInfo:
        """Return where tensor `name` of a source is stored."""
        return self._models[source].header.tensors[name]

    def made_by(self, source: str, name: str) -> tuple[str, Plan, Job]:
        """Return the stage whose result a source is, its plan, and the row of one tensor."""
        model = self._models[source]
        if model.plan is None:
            raise DataError(f"`{source}` is not the result of a stage")
        with self._lock:
            if source not in self._jobs:
                self._jobs[source] = {job.name: job for job in model.plan.jobs}
        return model.stage, model.plan, self._jobs[source][name]

    def within(self, source: str) -> Readers:
        """Return the weight files of the stage whose result a source is."""
        model = self._models[source]
        with self._lock:
            if source not in self._within:
                inner = Readers(
                    model.parts,
                    model.plan.row_maps if model.plan is not None else None,
                    tile=self.tile,
                    keep=self.keep,
                    allow_nonfinite=self.allow_nonfinite,
                    stages=self.stages,
                )
                inner.traffic = self.traffic
                self._within[source] = inner
            return self._within[source]

    def located(self, source: str, name: str) -> tuple[Readers, str, TensorInfo]:
        """Return where the bytes of a tensor lie that is copied, through all stages."""
        info = self.info(source, name)
        if info.computed is None:
            return self, source, info
        read = self.made_by(source, name)[2].reads[0]
        return self.within(source).located(read.source, read.name)

    def reader(self, source: str, file: str) -> Reader:
        """Return the reader of one file, opened at first use."""
        key = (source, file)
        with self._lock:
            if key not in self._open:
                self._open[key] = self._models[source].open(file)
            return self._open[key]

    def read(self, source: str, info: TensorInfo, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` from byte `start` of a tensor on."""
        self.reader(source, info.file).read_into(out, info.start + start)
        self.traffic.add_read(out.nbytes)

    def tensor(self, source: str, name: str) -> NDArray[np.float32]:
        """Return a whole (small) tensor in fp32."""
        info = self.info(source, name)
        raw = np.empty(info.nbytes, np.uint8)
        self.read(source, info, 0, raw)
        return as_float32(raw, info.dtype).reshape(info.shape)

    def close(self) -> None:
        for inner in self._within.values():
            inner.close()
        for reader in self._open.values():
            reader.close()


def as_float32(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Return stored entries as fp32 (exactly, but for F64, which is rounded)."""
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kind = {"F16": np.float16, "F32": np.float32, "F64": np.float64}.get(dtype)
    if kind is None:
        raise DataError(f"dtype {dtype} does not enter arithmetic")
    return raw.view(kind).astype(np.float32)


class TilePool:
    """One worker's memory for raw tiles, reused for every row.

    A tile of an input lies at an address congruent to its file offset modulo a cache line:
    reads into other positions were measured five times slower (docs/benchmarks.md).
    """

    def __init__(self) -> None:
        self.raw: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._memory: NDArray[np.uint8] = self.raw

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Return new memory; other devices want another kind of it."""
        return np.empty(nbytes, np.uint8)

    def positions(self, slots: list[Slot], tile: int) -> NDArray[np.int64]:
        """Return where each slot's page-aligned space begins, after making room for all."""
        at, end = [], 0
        for slot in slots:
            at.append(end)
            width = DTYPE_BYTES[slot.dtype] if slot.dtype else 0
            end += -(-(tile * width + CACHE_LINE) // SLOT_ALIGNMENT) * SLOT_ALIGNMENT
        if self.raw.nbytes < end:
            self._memory = self.allocate(end + SLOT_ALIGNMENT)
            skip = -self._memory.ctypes.data % SLOT_ALIGNMENT
            self.raw = self._memory[skip : skip + end]
        return np.array(at, np.int64)
