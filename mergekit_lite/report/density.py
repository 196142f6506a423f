"""How many weights of a checkpoint are zero, and whether they are 2:4 sparse: counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES, FLOAT_DTYPES, TensorInfo, role_of
from mergekit_lite.errors import RecipeError

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

CHUNK = 1 << 22
"""Entries that are read at a time, about."""
GROUP, MOST = 4, 2
_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Density:
    """What was counted of some tensors.

    Attributes:
        tensors: how many there are.
        entries: of all of them.
        nonzero: entries that are not zero.
        two_of_four: how many are matrices with two entries at most in every four of a row.
    """

    tensors: int = 0
    entries: int = 0
    nonzero: int = 0
    two_of_four: int = 0

    @property
    def density(self) -> float:
        """Part of the entries that is not zero."""
        return self.nonzero / self.entries if self.entries else 0.0

    def plus(self, other: Density) -> Density:
        """Return what was counted of both."""
        return Density(
            self.tensors + other.tensors,
            self.entries + other.entries,
            self.nonzero + other.nonzero,
            self.two_of_four + other.two_of_four,
        )

    def plain(self) -> dict[str, Any]:
        """Return the counts as JSON-able data."""
        return {**asdict(self), "density": round(self.density, 6)}


def densities(model: Model) -> dict[str, Density]:
    """Return what is counted of each float tensor of a checkpoint, by name; it is read once.

    Raises:
        RecipeError: the model has none, or they are stored as codes.
    """
    floats = [t for t in model.header.tensors.values() if t.dtype in FLOAT_DTYPES]
    stored = [t for t in floats if t.coded is None and t.computed is None]
    if model.kind != "checkpoint" or not stored:
        hint = "give a checkpoint with weights in a float dtype"
        raise RecipeError("has no float weights to count", model.reference, hint)
    readers = {file: model.open(file) for file in {t.file for t in stored}}
    try:
        return {t.name: _counted(t, readers[t.file]) for t in stored}
    finally:
        for reader in readers.values():
            reader.close()


def by_role(found: Mapping[str, Density]) -> dict[str, Density]:
    """Return the counts of tensors that play the same part, and of `all`."""
    counts: dict[str, Density] = {}
    for name, one in found.items():
        role = role_of(name)
        counts[role] = counts.get(role, Density()).plus(one)
    total = Density()
    for one in counts.values():
        total = total.plus(one)
    return {**dict(sorted(counts.items())), "all": total}


def _counted(info: TensorInfo, reader: Any) -> Density:
    width = info.shape[-1] if info.shape else 1
    is_matrix = len(info.shape) > 1 and min(info.shape) > 1 and width % GROUP == 0
    nonzero, fits = 0, is_matrix
    for part in _read(info, reader, max(CHUNK // max(width, 1), 1) * width):
        nonzero += int(np.count_nonzero(part))
        if fits:
            fits = int(part.reshape(-1, GROUP).sum(1, dtype=np.uint8).max(initial=0)) <= MOST
    return Density(1, info.size, nonzero, int(fits))


def _read(info: TensorInfo, reader: Any, count: int) -> Iterator[NDArray[np.bool_]]:
    """Yield which entries are not zero, whole rows at a time; minus zero is zero."""
    width = DTYPE_BYTES[info.dtype]
    kind = _UNSIGNED[width]
    without_sign = kind((1 << (8 * width - 1)) - 1)
    for first in range(0, info.size, count):
        raw = np.empty(min(count, info.size - first), kind)
        reader.read_into(raw.view(np.uint8), info.start + first * width)
        yield raw & without_sign != 0
