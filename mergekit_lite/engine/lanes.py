"""How tiles travel between a worker and the device that computes them.

A lane has two sides of host memory, so that one tile is read while the device works on the other.
On the CPU nothing travels; on CUDA the sides are pinned, every worker has a stream of its own,
and copies in both directions run beside the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_lite.engine.tiles import TilePool


class Lane(Protocol):
    """A worker's way to a device and back."""

    device: torch.device
    sides: Sequence[TilePool]
    """Two sides of host memory for raw tiles, kept for all rows of a worker."""

    def working(self) -> AbstractContextManager[Any]:
        """Return the context in which copies and arithmetic are queued."""

    def up(self, host: Tensor) -> Tensor:
        """Queue a copy to the device."""

    def down(self, result: Tensor, host: NDArray[np.uint8]) -> Any:
        """Queue a copy of the result's bytes to `host`; return a ticket for `arrived`."""

    def arrived(self, ticket: Any) -> None:
        """Wait until a queued copy down has ended."""

    def buffer(self, nbytes: int) -> NDArray[np.uint8]:
        """Return host memory for a result; that of the result before the last is used again."""


class Buffers:
    """Two host buffers for results, handed out in turn."""

    def __init__(self, side: TilePool) -> None:
        self._memory: list[NDArray[np.uint8]] = [np.empty(0, np.uint8), np.empty(0, np.uint8)]
        self._allocate = side.allocate
        self._turn = 0

    def next(self, nbytes: int) -> NDArray[np.uint8]:
        self._turn = 1 - self._turn
        if self._memory[self._turn].nbytes < nbytes:
            self._memory[self._turn] = self._allocate(nbytes)
        return self._memory[self._turn][:nbytes]


class HostLane:
    """The CPU: nothing travels.

    Made in the thread that uses it. Workers share the cores out by rows, so that each computes on
    one thread; and a product or factorisation split over threads would round differently with
    their number.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.sides: Sequence[TilePool] = (TilePool(), TilePool())
        self._buffers = Buffers(self.sides[0])

    def working(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def up(self, host: Tensor) -> Tensor:
        return host

    def down(self, result: Tensor, host: NDArray[np.uint8]) -> Any:
        host[:] = result.contiguous().flatten().view(torch.uint8).numpy()
        return None

    def arrived(self, ticket: Any) -> None:
        return None

    def buffer(self, nbytes: int) -> NDArray[np.uint8]:
        return self._buffers.next(nbytes)


class PinnedPool(TilePool):
    """Raw tiles in page-locked memory, which the device reads without the CPU."""

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()


class CudaLane:
    """One GPU, through a stream of this worker's own."""

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self.sides: Sequence[TilePool] = (PinnedPool(), PinnedPool())
        self._buffers = Buffers(self.sides[0])

    def working(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream)

    def up(self, host: Tensor) -> Tensor:
        return host.to(self.device, non_blocking=True)

    def down(self, result: Tensor, host: NDArray[np.uint8]) -> Any:
        flat = result.contiguous().flatten().view(torch.uint8)
        torch.from_numpy(host).copy_(flat, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def arrived(self, ticket: Any) -> None:
        ticket.synchronize()

    def buffer(self, nbytes: int) -> NDArray[np.uint8]:
        return self._buffers.next(nbytes)


def restore_threads() -> None:
    """Give threads that begin later as many as the calling one has: a worker has set them to 1."""
    torch.set_num_threads(torch.get_num_threads())


def lane_for(device: str, worker: int) -> Lane:
    """Return a lane to `cpu` or `cuda`; workers take the machine's GPUs in turn."""
    if device == "cpu":
        return HostLane()
    return CudaLane(worker % torch.cuda.device_count())
