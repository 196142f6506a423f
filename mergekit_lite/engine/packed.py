"""A compressed difference as an input, decoded tile by tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.patch import Packed

if TYPE_CHECKING:
    from mergekit_lite.compress import Decoder
    from mergekit_lite.engine.inputs import Readers
    from mergekit_lite.kernels._jit import Kernel
    from mergekit_lite.plan.types import Job
    from mergekit_lite.sources import Model


@dataclass
class Unpacked:
    """What a patch adds to a tensor."""

    decoder: Decoder
    dtype = "F32"
    is_delta = True

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        self.decoder.fill(first, out.view(np.float32))


def unpacked(packed: Packed, source: str, readers: Readers) -> Unpacked:
    """Return what supplies a difference that a patch has compressed."""
    from mergekit_lite.compress import scheme_named

    return Unpacked(scheme_named(packed.scheme).decoder(packed, partial(readers.read, source)))


def unpacking_kernels(job: Job, models: Mapping[str, Model]) -> list[Kernel]:
    """Return the kernels that decoding the inputs of a row calls."""
    found: dict[Kernel, None] = {}
    for read in job.reads:
        if read.lora is not None and read.lora.packed:
            adapter = models[read.source].adapter
            if adapter is not None and adapter.patch is not None:
                from mergekit_lite.compress import scheme_named  # few merges have patches

                scheme = adapter.patch.rows[read.lora.packed].scheme
                found |= dict.fromkeys(scheme_named(scheme).kernels)
    return list(found)
