"""Open weight files, shared by all workers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.checkpoint.patch import Packed, packed
from mergekit_lite.errors import DataError
from mergekit_lite.plan.row_memory import TILE_ENTRIES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergekit_lite.checkpoint.reader import Reader
    from mergekit_lite.engine.stage_parts import StageParts
    from mergekit_lite.plan.row_maps import RowMap
    from mergekit_lite.plan.types import Job, Plan
    from mergekit_lite.sources import Model


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

    def packed(self, source: str, name: str) -> Packed:
        """Return how a patch stores what it adds to a tensor, by its own name for that."""
        model = self._models[source]
        if model.adapter is None or model.adapter.patch is None:
            raise DataError(f"`{source}` is not a patch")
        return packed(model.adapter.patch, name, model.header.tensors)

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
        # A run that only copies needs no numpy, which takes a tenth of a second to import.
        import numpy as np

        from mergekit_lite.engine.tiles import as_float32

        info = self.info(source, name)
        raw = np.empty(info.nbytes, np.uint8)
        self.read(source, info, 0, raw)
        return as_float32(raw, info.dtype).reshape(info.shape)

    def close(self) -> None:
        for inner in self._within.values():
            inner.close()
        for reader in self._open.values():
            reader.close()
