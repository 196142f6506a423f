"""Keeps a run under its memory cap: smaller tiles first, then fewer large rows at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mergekit_lite.engine.options import Options
from mergekit_lite.ops import registry
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.row_memory import (
    KEPT_BYTES,
    LEAST_TILE,
    PROCESS_BYTES,
    TORCH_COPIES,
    tile_entries,
    torch_bytes,
    whole_bytes,
)
from mergekit_lite.plan.types import Job, Plan


def tile_for(plan: Plan, options: Options) -> int:
    """Return the entries of a tile: fewer where all workers' tiles would exceed half the cap."""
    tile = tile_entries(options.device)
    if options.max_memory is None:
        return tile
    inputs = max((len(job.reads) + 2 for job in plan.jobs), default=2)
    in_torch = torch_bytes(plan, options.device)
    inputs *= TORCH_COPIES if in_torch else 1
    room = max(options.max_memory - PROCESS_BYTES - in_torch, 0) // 2
    while tile > LEAST_TILE and options.workers * tile * 4 * inputs > room:
        tile //= 2
    return tile


def keep_for(plan: Plan, options: Options) -> int:
    """Return the bytes of inputs that a worker may keep between the sweeps of a row."""
    if options.max_memory is None:
        return KEPT_BYTES
    free = estimate(plan, threads=options.workers, refuse=False, device=options.device)
    return KEPT_BYTES if free.peak_memory <= options.max_memory else 0


class MemoryGate:
    """Lets rows that need whole tensors in memory run only while they fit together."""

    def __init__(self, plan: Plan, options: Options) -> None:
        limit = options.max_memory
        self._device = options.device
        self._limit = None if limit is None else max(limit - PROCESS_BYTES, 0)
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def room_for(self, job: Job) -> Iterator[None]:
        """Wait until the row fits beside those that run; a row alone always may."""
        need = whole_bytes(job, registry(), self._device)
        if self._limit is None or need == 0:
            yield
            return
        with self._changed:
            self._changed.wait_for(
                lambda: self._used == 0 or self._used + need <= (self._limit or 0)
            )
            self._used += need
        try:
            yield
        finally:
            with self._changed:
                self._used -= need
                self._changed.notify_all()
