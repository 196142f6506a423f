"""What a store holds: its size against that of its models, and what it misses, task by task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mergekit_lite.checkpoint import DTYPE_BYTES, Header
from mergekit_lite.checkpoint.patch import SAME, WHOLE
from mergekit_lite.checkpoint.store import Store, places


@dataclass(frozen=True)
class Task:
    """One task of a store.

    Attributes:
        stored: bytes that are its own.
        compressed, whole, same: tensors of each kind.
        norm: L2 norm of its difference to the base.
        error: L2 norm of what is missed of it, over `norm`.
    """

    stored: int
    compressed: int
    whole: int
    same: int
    norm: float
    error: float


@dataclass(frozen=True)
class StoreSummary:
    """What the header of a store says.

    Attributes:
        method: by which it was made.
        parameters: of the method.
        base: name of the base.
        entries: of one model.
        dense: bytes of one model in the base's dtypes.
        file_bytes: of the whole file, header included.
        shared: bytes that belong to all tasks.
        tasks: by name.
    """

    method: str
    parameters: Mapping[str, Any]
    base: str
    entries: int
    dense: int
    file_bytes: int
    shared: int
    tasks: Mapping[str, Task]

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than all of its models."""
        return len(self.tasks) * self.dense / self.file_bytes

    @property
    def bits(self) -> float:
        """Bits of the whole file for each entry of each model."""
        return 8 * self.file_bytes / max(len(self.tasks) * self.entries, 1)

    def plain(self) -> dict[str, Any]:
        """Return the summary as JSON-able data."""
        return {**asdict(self), "ratio": self.ratio, "bits": self.bits}


def summarise_store(store: Store, header: Header) -> StoreSummary:
    """Return the summary of a store."""
    stored = dict.fromkeys(("", *store.tasks), 0)
    for key, place in places(store, header).items():
        stored[place.task if place is not None else ""] += header.tensors[key].nbytes
    rows = next(iter(store.tasks.values())).values()
    sizes = [math.prod(row.shape) for row in rows]
    widths = [DTYPE_BYTES[row.dtype] for row in rows]
    return StoreSummary(
        method=store.method,
        parameters=store.parameters,
        base=store.base,
        entries=sum(sizes),
        dense=sum(size * width for size, width in zip(sizes, widths, strict=True)),
        file_bytes=sum(header.files.values()),
        shared=stored[""],
        tasks={task: _task(store, task, stored[task]) for task in store.tasks},
    )


def _task(store: Store, task: str, stored: int) -> Task:
    rows = store.tasks[task].values()
    squares = math.fsum(row.norm**2 for row in rows)
    missed = math.fsum(row.error**2 for row in rows)
    same, whole = (sum(row.scheme == kind for row in rows) for kind in (SAME, WHOLE))
    return Task(
        stored=stored,
        compressed=len(rows) - same - whole,
        whole=whole,
        same=same,
        norm=math.sqrt(squares),
        error=math.sqrt(missed / squares) if squares else 0.0,
    )
