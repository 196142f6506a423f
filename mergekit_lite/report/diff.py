"""Compare two checkpoints tensor by tensor, with a few tiles of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import (
    DTYPE_BYTES,
    FLOAT_DTYPES,
    Reader,
    TensorInfo,
    aligned_buffer,
    layer_of,
    role_of,
)
from mergekit_lite.engine.dequantised import decoder

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

TILE = 1 << 13
"""Entries held at once. Tiles of this size stay in the cache and below the 10,000 entries from
which OpenBLAS gives a dot product to several threads, which was measured 40 times slower."""

Key = TypeVar("Key")

NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Pair:
    """Sums over the entries of tensors that two checkpoints share.

    Attributes:
        tensors: how many tensors were compared.
        entries: how many entries they have; each sum runs over all of them, in fp64.
        changed: entries that differ.
        aa: sum of a * a.
        bb: sum of b * b.
        ab: sum of a * b.
        dd: sum of (b - a) * (b - a).
    """

    tensors: int = 0
    entries: int = 0
    changed: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0

    def __add__(self, other: Pair) -> Pair:
        return Pair(
            self.tensors + other.tensors,
            self.entries + other.entries,
            self.changed + other.changed,
            self.aa + other.aa,
            self.bb + other.bb,
            self.ab + other.ab,
            self.dd + other.dd,
        )

    @property
    def norm(self) -> float:
        """Euclidean norm of the difference b - a."""
        return math.sqrt(self.dd)

    @property
    def relative(self) -> float | None:
        """Norm of the difference over the norm of a; None where a is zero."""
        return math.sqrt(self.dd / self.aa) if self.aa > 0 else None

    @property
    def cosine(self) -> float | None:
        """Cosine between a and b, as flat vectors; None where one of them is zero."""
        if not (self.aa > 0 and self.bb > 0):
            return None
        return self.ab / (math.sqrt(self.aa) * math.sqrt(self.bb))

    @property
    def share(self) -> float:
        """Share of entries that differ, 0 to 1."""
        return self.changed / self.entries if self.entries else 0.0


@dataclass(frozen=True)
class Difference:
    """How two checkpoints differ.

    Attributes:
        groups: (layer, role) -> sums; the layer is None outside the layers.
        only_a: tensors that the second lacks.
        only_b: tensors that the first lacks.
        unlike: tensors whose shapes, or non-float dtypes, differ.
    """

    groups: dict[tuple[int | None, str], Pair]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    unlike: tuple[str, ...]

    @property
    def total(self) -> Pair:
        """Sums over everything that was compared."""
        return sum(self.groups.values(), Pair())

    @property
    def same(self) -> bool:
        """Whether both hold the same tensors with the same values."""
        return not (self.only_a or self.only_b or self.unlike or self.total.changed)


def compare(a: Model, b: Model, progress: Callable[[int], Any] | None = None) -> Difference:
    """Compare two checkpoints by reading both once.

    Args:
        a: the first checkpoint; `relative` is relative to it.
        b: the second checkpoint.
        progress: called with the number of bytes of each pair of tiles read.
    """
    left, right = a.header.tensors, b.header.tensors
    shared = [name for name in left if name in right]
    unlike = tuple(name for name in shared if not _comparable(left[name], right[name]))
    groups: dict[tuple[int | None, str], Pair] = {}
    readers: dict[tuple[int, str], Reader] = {}
    try:
        for name in shared:
            if name in unlike:
                continue
            pair = Pair(tensors=1)
            for side, model, info in ((0, a, left[name]), (1, b, right[name])):
                for part in info.coded.parts if info.coded is not None else (info,):
                    if (side, part.file) not in readers:
                        readers[side, part.file] = model.open(part.file)
            sides = _tiles_of(left[name], 0, readers), _tiles_of(right[name], 1, readers)
            for tile in map(_sums, *sides):
                pair += tile
                if progress:
                    widths = DTYPE_BYTES[left[name].dtype] + DTYPE_BYTES[right[name].dtype]
                    progress(tile.entries * widths)
            key = (layer_of(name), role_of(name))
            groups[key] = groups.get(key, Pair()) + pair
    finally:
        for reader in readers.values():
            reader.close()
    return Difference(
        dict(sorted(groups.items(), key=_by_layer)),
        tuple(name for name in left if name not in right),
        tuple(name for name in right if name not in left),
        unlike,
    )


def by_layer(groups: dict[tuple[int | None, str], Pair]) -> dict[int | None, Pair]:
    """Return the sums of each layer, over all roles."""
    return _merged((layer, pair) for (layer, _), pair in groups.items())


def by_role(groups: dict[tuple[int | None, str], Pair]) -> dict[str, Pair]:
    """Return the sums of each role, over all layers."""
    return _merged((role, pair) for (_, role), pair in groups.items())


def _merged(pairs: Iterable[tuple[Key, Pair]]) -> dict[Key, Pair]:
    sums: dict[Key, Pair] = {}
    for key, pair in pairs:
        sums[key] = sums.get(key, Pair()) + pair
    return sums


def _by_layer(item: tuple[tuple[int | None, str], Pair]) -> tuple[int, str]:
    layer, role = item[0]
    return (-1 if layer is None else layer, role)


def _comparable(a: TensorInfo, b: TensorInfo) -> bool:
    floats = a.dtype in FLOAT_DTYPES and b.dtype in FLOAT_DTYPES
    return a.shape == b.shape and (floats or a.dtype == b.dtype)


def _tiles_of(
    info: TensorInfo, side: int, readers: Mapping[tuple[int, str], Reader]
) -> Iterator[NDArray[Any]]:
    """Yield the entries of a tensor, floats as fp64 and others as the bytes of each."""

    def fetch(part: TensorInfo, start: int, out: NDArray[np.uint8]) -> None:
        readers[side, part.file].read_into(out, part.start + start)

    numbers = np.empty(min(TILE, info.size), np.float32)
    codes = decoder(info, fetch) if info.coded is not None else None
    width = DTYPE_BYTES[info.dtype]
    buffer = aligned_buffer(0 if codes else min(TILE, info.size) * width, info.start)
    for start in range(0, info.size, TILE):
        count = min(TILE, info.size - start)
        if codes is not None:
            codes.fill(start, numbers[:count])
            yield numbers[:count].astype(np.float64)
            continue
        part = buffer[: count * width]
        fetch(info, start * width, part)
        yield decode(part, info.dtype) if info.dtype in FLOAT_DTYPES else part.reshape(count, width)


def _sums(x: NDArray[Any], y: NDArray[Any]) -> Pair:
    if x.dtype == np.uint8:
        # Codes have no meaning as numbers: all that can be said is which of them differ.
        return Pair(entries=len(x), changed=int(np.count_nonzero((x != y).any(axis=1))))
    d = y - x
    return Pair(
        entries=len(x),
        changed=int(np.count_nonzero(x != y)),
        aa=float(np.dot(x, x)),
        bb=float(np.dot(y, y)),
        ab=float(np.dot(x, y)),
        dd=float(np.dot(d, d)),
    )


def decode(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float64]:
    """Return stored floats as fp64, which holds each of them exactly."""
    values = raw.view(NUMPY_DTYPES[dtype])
    if dtype == "BF16":
        # A bf16 is the upper half of an fp32.
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)
