"""What codecs and schemes are given and give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES, TensorInfo
from mergekit_lite.checkpoint.coded.grid import Fetch
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress.survey import Found
from mergekit_lite.kernels._jit import Kernel

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Delta:
    """A difference that a codec is to compress.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        values: its entries in fp32, flat; finite and not all zero.
        found: what a survey of the whole model has found, for a codec that asks for one.
        kept: how many of the entries are kept that reach the threshold of `found`.
        ties: how many of them equal it.
        facts: what its codec has decided for it of all tensors, where it asks for that.
        gram: mean of the outer products of its inputs, (inputs, inputs) in fp32, where it is a
            matrix and there is a calibration.
        squares: sum of the squares of all entries, where a survey has told it.
    """

    name: str
    shape: tuple[int, ...]
    values: Floats
    found: Found | None = None
    kept: int = 0
    ties: int = 0
    facts: Mapping[str, float] = field(default_factory=dict)
    gram: Floats | None = None
    squares: float | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether it has rows and columns, more than one of each."""
        return len(self.shape) == 2 and min(self.shape) > 1


@dataclass(frozen=True)
class Encoded:
    """A compressed difference.

    Attributes:
        scheme: how it is stored.
        parts: what is stored, each of uint8, uint32, float16 or float32.
        numbers: what the scheme needs to know beside them.
        missed: sum of the squares of what is missed, where the codec knows it without decoding.
    """

    scheme: str
    parts: Mapping[str, NDArray[Any]]
    numbers: Mapping[str, float] = field(default_factory=dict)
    missed: float | None = None


class Decoder(Protocol):
    """Decodes one tensor, from any entry on."""

    def fill(self, first: int, out: Floats) -> None:
        """Put the entries from `first` on into `out`, as many as it has room for."""


@dataclass(frozen=True)
class Scheme:
    """A way to store a difference.

    Attributes:
        name: as patches say it.
        decoder: returns what decodes a tensor; raises DataError if its parts do not fit.
        kernels: what decoding calls.
        held: bytes that stay in memory while a tensor is decoded.
    """

    name: str
    decoder: Callable[[Packed, Fetch], Decoder]
    kernels: tuple[Kernel, ...]
    held: Callable[[Packed], int]


DTYPES: Mapping[str, str] = {"uint8": "U8", "uint32": "U32", "float16": "F16", "float32": "F32"}
"""Safetensors' names of the dtypes that parts may have."""


def in_memory(encoded: Encoded, name: str, shape: tuple[int, ...]) -> tuple[Packed, Fetch]:
    """Return what has just been compressed as if it were stored, and what reads its parts."""
    parts, raw = {}, {}
    for key, value in encoded.parts.items():
        parts[key] = TensorInfo(f"{name}:{key}", DTYPES[value.dtype.name], value.shape, "", 0)
        raw[parts[key].name] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

    def fetch(info: TensorInfo, start: int, out: NDArray[np.uint8]) -> None:
        out[:] = raw[info.name][start : start + out.size]

    return Packed(name, shape, encoded.scheme, encoded.numbers, parts), fetch


def size_of(packed: Packed) -> int:
    """Return the entries of the tensor that is stored."""
    return prod(packed.shape)


def width_of(packed: Packed) -> int:
    """Return the entries of a row."""
    return max(packed.shape[-1], 1) if packed.shape else 1


def entry_bytes(info: TensorInfo) -> int:
    """Return the bytes of one stored entry."""
    return DTYPE_BYTES[info.dtype]
