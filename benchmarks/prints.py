"""What tells whether a merge is the one it was: the digest of its bytes, or sums of its changes."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

SEED = 20260101
TOLERANCE = 2e-3
"""What sums may differ by, of the norm: far above another library's rounding, far below a fault."""

Sums = dict[str, list[float]]


def digest(folder: Path) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of every tensor, by name."""
    total = hashlib.sha256()
    for name, value in _tensors(folder):
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _tensors(folder: Path) -> list[tuple[str, torch.Tensor]]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return sorted(found.items())


def sums(folder: Path, base: Path) -> Sums:
    """Return for each kind of tensor the norm of what was changed, and a sum with random signs.

    Args:
        folder: a merge.
        base: what it is compared with, where that has tensors of the same name and shape.
    """
    before = load_file(base / "model.safetensors")
    squares: dict[str, float] = {}
    signed: dict[str, float] = {}
    for name, value in _tensors(folder):
        change = value.double().numpy().ravel()
        if name in before and before[name].shape == value.shape:
            change = change - before[name].double().numpy().ravel()
        bits = np.random.Philox(SEED).random_raw(change.size // 64 + 1).astype("<u8")
        plus = np.unpackbits(bits.view(np.uint8))[: change.size].astype(bool)
        kind = re.sub(r"\.\d+\.", ".", name)
        squares[kind] = squares.get(kind, 0.0) + float((change * change).sum())
        signed[kind] = signed.get(kind, 0.0) + float(np.where(plus, change, -change).sum())
    return {kind: [math.sqrt(squares[kind]), signed[kind]] for kind in sorted(squares)}


def unlike(now: Mapping[str, list[float]], then: Mapping[str, list[float]]) -> list[str]:
    """Return the kinds of tensors whose sums are not what they were."""
    if now.keys() != then.keys():
        return sorted(now.keys() ^ then.keys())
    return [
        kind
        for kind, (norm, total) in now.items()
        if abs(norm - then[kind][0]) > TOLERANCE * max(norm, then[kind][0])
        # A sum with random signs is about as large as the norm.
        or abs(total - then[kind][1]) > TOLERANCE * max(norm, then[kind][0])
    ]
