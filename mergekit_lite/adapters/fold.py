"""What rounding takes away when adapters are folded in one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.supplies import slots_of
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.plan.types import Plan

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

_TILE: Final = 1 << 20
_WIDTHS: Final = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True)
class Loss:
    """What one fold loses to rounding.

    Attributes:
        expert: whose fold it is.
        lost: share of its delta's entries that leave the weight as it was.
        error: norm of what rounding changes over the norm of the delta.
    """

    expert: str
    lost: float
    error: float


def losses(plan: Plan, models: Mapping[str, Model], dtype: str) -> list[Loss]:
    """Return the loss of each fold of a plan of `lora_fold`, in the order of the folds.

    Args:
        plan: its rows read the base and the adapters.
        models: its inputs, opened.
        dtype: what the weight is rounded to after each fold.
    """
    import torch

    kind = getattr(torch, dtype)
    sums: dict[str, list[float]] = {}  # entries, lost, squares of the delta, of the error
    readers = Readers(models)
    try:
        for job in plan.jobs:
            if job.kind != "merge" or not job.reads or job.base is None:
                continue
            slots = slots_of(job, readers)
            size = math.prod(job.shape)
            for first in range(0, size, _TILE):
                count = min(_TILE, size - first)
                weight: torch.Tensor | None = None
                start: torch.Tensor | None = None
                for slot in slots:
                    if slot.supply is None:
                        continue
                    raw = np.empty(count * _WIDTHS[slot.dtype], np.uint8)
                    slot.supply.fill(first, count, raw)
                    value = torch.from_numpy(as_float32(raw, slot.dtype))
                    if weight is None or start is None:
                        weight = start = value
                        continue
                    delta = value if slot.is_delta else value - start
                    whole = weight + delta
                    rounded = whole.to(kind).float()
                    moved = delta != 0
                    found = sums.setdefault(slot.read.source, [0.0] * 4)
                    found[0] += float(moved.sum())
                    found[1] += float((moved & (rounded == weight)).sum())
                    found[2] += float(delta.double().square().sum())
                    found[3] += float((whole.double() - rounded.double()).square().sum())
                    weight = rounded
    finally:
        readers.close()
    return [
        Loss(name, lost / max(entries, 1), math.sqrt(error / delta) if delta else 0.0)
        for name, (entries, lost, delta, error) in sums.items()
    ]
