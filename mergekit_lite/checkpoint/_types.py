"""What a checkpoint's headers say: names, dtypes, shapes and where the bytes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
"""Bytes of an entry of each safetensors dtype that this package knows by name."""

FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes that enter arithmetic; all others are copied or refused."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor on disk.

    Attributes:
        name: the tensor's name on disk.
        dtype: safetensors dtype name, such as `BF16`.
        shape: sizes of the dimensions.
        file: name of the file inside the model's folder.
        start: byte offset of the first entry, from the start of that file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """All tensors of a checkpoint, over all of its files, ordered by (file order, offset).

    Attributes:
        tensors: name -> tensor.
        files: name of each weight file -> its size in bytes.
        metadata: the `__metadata__` strings of the first file.
        warnings: oddities that do not stop a merge (a stray file, a wrong `total_size`).
    """

    tensors: Mapping[str, TensorInfo]
    files: Mapping[str, int]
    metadata: Mapping[str, str]
    warnings: tuple[str, ...] = ()
