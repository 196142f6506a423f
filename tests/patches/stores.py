"""Makes stores of small models, and decodes them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergekit_lite import storing
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.packed import unpacked
from mergekit_lite.sources import resolve


def deltas(reference: str) -> dict[str, torch.Tensor]:
    """Return every compressed difference of one task, decoded in one go."""
    model = resolve(reference, relative_to=Path(), kind="patch")
    readers = Readers({"task": model})
    found = {}
    assert model.adapter is not None
    for name, factors in model.adapter.factors.items():
        packed = readers.packed("task", factors.packed)
        out = np.empty(prod(packed.shape), np.float32)
        unpacked(packed, "task", readers).fill(0, out.size, out.view(np.uint8))
        found[name] = torch.from_numpy(out).reshape(packed.shape)
    readers.close()
    return found


def made(
    tmp_path: Path, experts: dict[str, str], base: Path, name: str = "store", **params: Any
) -> Path:
    out = tmp_path / f"{name}.safetensors"
    storing.pack(experts, str(base), out, **params)
    return out
