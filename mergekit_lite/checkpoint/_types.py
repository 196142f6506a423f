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
    """One tensor of a model: as it is on disk, or as what is on disk stands for it.

    Attributes:
        name: the tensor's name.
        dtype: safetensors dtype name, such as `BF16`.
        shape: sizes of the dimensions.
        file: name of the file inside the model's folder.
        start: byte offset of the first entry, from the start of that file.
        coded: how its numbers are stored, where they are codes of a quantised checkpoint; `file`
            and `start` are then those of the codes.
        computed: how it is made, where it is on no disk but the result of a stage.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    coded: Coded | None = None
    computed: Computed | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on disk."""
        if self.coded is not None:
            return sum(part.nbytes for part in self.coded.parts)
        if self.computed is not None:
            return self.computed.nbytes
        return self.size * DTYPE_BYTES[self.dtype]

    @property
    def loaded(self) -> str:
        """Dtype of its entries in memory."""
        if self.computed is not None:
            return self.computed.dtype
        return "F32" if self.coded is not None else self.dtype

    @property
    def is_made(self) -> bool:
        """Whether its entries are made while they are read, so that no bytes can be copied."""
        return self.coded is not None or self.computed is not None

    @property
    def held(self) -> int:
        """Bytes that stay in memory while its tiles are made."""
        if self.computed is not None:
            return self.computed.held
        return self.coded.held if self.coded is not None else 0


@dataclass(frozen=True, slots=True)
class Computed:
    """A tensor that a stage computes while it is read.

    Attributes:
        dtype: in which its entries are handed over: F32, or what the stage rounds to.
        nbytes: bytes that are read to make it.
        held: bytes of memory that making it tile by tile takes.
    """

    dtype: str
    nbytes: int
    held: int


@dataclass(frozen=True, slots=True)
class Coded:
    """How the numbers of a tensor follow from codes: `(code - zero) * (scale / divisor)`.

    The tensor is taken as a matrix: its last dimension is the width, all others are rows. Scales
    (and zeros) form a grid, one for each block of it.

    Attributes:
        form: what a code is: `E4M3`, `E5M2`, `I8`, `E2M1` (two in a byte), or `U2`, `U4`, `U8`:
            unsigned bits whose middle stands for 0, packed from the lowest bit on.
        codes: the stored codes.
        scale: the stored scales; U8 and F8_E8M0 are exponents of two with bias 127.
        block: rows and columns that share a scale.
        zero: the stored zeros, I8, or I32 that hold unsigned codes packed down the rows.
        groups: I32, the column of the grid for each column of the tensor.
        divisor: one number that all scales are divided by.
        dims: the stored sizes of the dimensions, which must agree with the shape.
        transposed: codes and scales are stored with the last two dimensions exchanged, 32 codes
            for each scale.
    """

    form: str
    codes: TensorInfo
    scale: TensorInfo
    block: tuple[int, int]
    zero: TensorInfo | None = None
    groups: TensorInfo | None = None
    divisor: TensorInfo | None = None
    dims: TensorInfo | None = None
    transposed: bool = False

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        """All stored tensors that it is made of."""
        parts = (self.codes, self.scale, self.zero, self.groups, self.divisor, self.dims)
        return tuple(part for part in parts if part is not None)

    @property
    def held(self) -> int:
        """Bytes that stay in memory while its tiles are decoded: one matrix of a transposed one."""
        if not self.transposed:
            return 0
        return (self.codes.nbytes + self.scale.nbytes) // max(self.codes.shape[0], 1)


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
