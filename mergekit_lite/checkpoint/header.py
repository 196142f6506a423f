"""Headers: read those of a checkpoint, and lay out that of a file to be written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from mergekit_lite.checkpoint._types import DTYPE_BYTES, Header
from mergekit_lite.checkpoint.folder import read_files, weight_files
from mergekit_lite.checkpoint.parse import read_header_bytes

__all__ = ["header_text", "read_checkpoint", "read_header_bytes"]

# The order in which the safetensors library lays out dtypes: by width, then as listed here.
_WRITE_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16",
    "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL",
)  # fmt: skip
_RANK: Mapping[str, int] = {dtype: rank for rank, dtype in enumerate(_WRITE_ORDER)}


def read_checkpoint(path: Path) -> Header:
    """Read the headers of a checkpoint: a folder of safetensors files, or one such file.

    Only headers and the index are read, never a weight.

    Raises:
        RecipeError: the folder holds something else than a safetensors checkpoint, or lacks files.
        DataError: a header or the index is damaged; all damaged files are named.
        SourceError: there are no weights, or they cannot be read.
    """
    if path.is_file():
        return read_files(path.parent, [path.name])
    files, index, warnings = weight_files(path)
    return read_files(path, files, index, warnings)


def header_text(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[str, list[int], int]:
    """Lay out a safetensors file as the safetensors library would, byte for byte.

    Args:
        tensors: (name, dtype, shape) of every tensor, in any order.
        metadata: strings for `__metadata__`, written in sorted order.

    Returns:
        The JSON padded with spaces to a multiple of 8 bytes (the file begins with its length in
        8 bytes, then this text); the offset in the file of each of `tensors`, in the order
        given; the size of the file in bytes.
    """
    order = sorted(range(len(tensors)), key=lambda i: (_RANK[tensors[i][1]], tensors[i][0]))
    entries: dict[str, object] = (
        {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    )
    begins, position = [0] * len(tensors), 0
    for i in order:
        name, dtype, shape = tensors[i]
        begins[i] = position
        position += prod(shape) * DTYPE_BYTES[dtype]
        offsets = [begins[i], position]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
    length = len(text.encode())
    padding = -length % 8
    data_start = 8 + length + padding
    starts = [data_start + begin for begin in begins]
    return text + " " * padding, starts, data_start + position
