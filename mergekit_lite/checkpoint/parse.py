"""Parses the header of one safetensors file and believes nothing that it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint._types import DTYPE_BYTES, TensorInfo
from mergekit_lite.errors import DataError, RecipeError, SourceError

HEADER_LIMIT = 100_000_000
"""Most bytes of JSON that the safetensors format allows."""

SUBBYTE_DTYPES = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
"""Dtypes of quantised checkpoints whose entries share bytes."""

FRESH_COPY = "the file is damaged or was not written as safetensors: fetch or save it again"

# Larger than any address space: a product beyond it is an attack or rot, never a tensor.
_BYTES_LIMIT = 1 << 63

_OTHER_FORMATS: Mapping[bytes, tuple[str, str]] = {
    b"version https://git-lfs": (
        "is a git-lfs pointer, not the weights",
        "run `git lfs pull` in its folder, or download the file itself",
    ),
    b"GGUF": (
        "is a GGUF file, not safetensors",
        "merging needs the 16-bit safetensors checkpoint it was made from",
    ),
    b"PK\x03\x04": (
        "is a PyTorch pickle (zip), not safetensors",
        "convert it: load it with torch and save it with safetensors",
    ),
    b"<!DOCTYPE": (
        "is a web page, not safetensors",
        "the download saved an error or log-in page: download the file again",
    ),
}


def read_header_bytes(
    data: bytes, file: str, file_size: int
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return the tensors, by offset, and the metadata that a safetensors header states.

    Args:
        data: the first bytes of the file: the 8-byte length and all of the JSON.
        file: the file's name, kept in each tensor and named in errors.
        file_size: size of the whole file in bytes.

    Raises:
        DataError: the header is malformed or does not agree with the file's size.
        RecipeError: the file is well-formed but holds a dtype that cannot be merged.
    """
    end = header_end(data[:64], file, file_size)
    if len(data) < end:
        raise DataError(
            f"`{file}` is cut short: its header needs {end:,} bytes, {len(data):,} are there",
            hint=FRESH_COPY,
        )
    raw = parse_json(data[8:end], file)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise DataError(f"`{file}`: `__metadata__` is not a map of strings", hint=FRESH_COPY)
    return _layout(raw, file, end, file_size), metadata


def read_file_header(path: Path, file: str) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """Read the header of the file at `path`; also return the file's size in bytes.

    Raises:
        SourceError: the file cannot be opened.
        DataError, RecipeError: as `read_header_bytes`.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            size = path.stat().st_size
            start = stream.read(64)
            end = header_end(start, str(path), size)
            data = bytearray(start)
            while len(data) < end and (chunk := stream.read(end - len(data))):
                data += chunk
    except OSError as error:
        raise SourceError(
            f"cannot read `{path}`: {error.strerror or error}",
            hint="check that the file exists and that you may read it",
        ) from error
    tensors, metadata = read_header_bytes(bytes(data), str(path), size)
    if file != str(path):
        tensors = {
            name: TensorInfo(name, info.dtype, info.shape, file, info.start)
            for name, info in tensors.items()
        }
    return tensors, metadata, size


def header_end(start: bytes, file: str, file_size: int) -> int:
    """Return where the header of a file that begins with `start` (8 bytes or more) ends."""
    for magic, (what, hint) in _OTHER_FORMATS.items():
        if start[: len(magic)].upper() == magic.upper():
            raise DataError(f"`{file}` {what}", hint=hint)
    if file_size < 8 or len(start) < 8:
        raise DataError(
            f"`{file}` has {file_size:,} bytes, too few for a safetensors header", hint=FRESH_COPY
        )
    length = int.from_bytes(start[:8], "little")
    if length > HEADER_LIMIT:
        raise DataError(
            f"`{file}` claims a header of {length:,} bytes; the format allows {HEADER_LIMIT:,}",
            hint=FRESH_COPY,
        )
    if 8 + length > file_size:
        raise DataError(
            f"`{file}` is cut short: its header needs {8 + length:,} bytes, "
            f"the file has {file_size:,}",
            hint=FRESH_COPY,
        )
    if start[8:9] != b"{":
        raise DataError(f"`{file}`: the header is not a JSON object", hint=FRESH_COPY)
    return 8 + length


def parse_json(text: bytes, file: str) -> dict[str, Any]:
    """Parse a JSON object, refusing what `json` lets pass: repeated keys and lone surrogates.

    Raises:
        DataError: the text is not such an object.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"`{file}` does not hold valid JSON: {error}", hint=FRESH_COPY) from error
    if not isinstance(value, dict):
        raise DataError(f"`{file}` does not hold a JSON object", hint=FRESH_COPY)
    try:
        "".join(value).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"`{file}`: a name is not valid Unicode", hint=FRESH_COPY) from error
    return value


def _unique(file: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in found if names.count(name) > 1)
            raise DataError(f"`{file}`: the JSON key `{twice}` appears twice", hint=FRESH_COPY)
        return found

    return pairs


def _layout(raw: dict[str, Any], file: str, data_start: int, size: int) -> dict[str, TensorInfo]:
    """Check every entry, then that the entries tile the data of the file without a hole."""
    spans = sorted((*_entry(name, value, file), name) for name, value in raw.items())
    tensors, position = {}, 0
    for begin, end, dtype, shape, name in spans:
        if begin != position:
            fault = "overlaps the one before it" if begin < position else "leaves a gap before it"
            raise DataError(
                f"`{file}`: tensor `{name}` {fault} (starts at {begin}, expected {position})",
                hint=FRESH_COPY,
            )
        tensors[name] = TensorInfo(name, dtype, shape, file, data_start + begin)
        position = end
    needed = data_start + position
    if needed > size:
        raise DataError(
            f"`{file}` is cut short: the header needs {needed:,} bytes, the file has {size:,}",
            hint="the download or the copy did not finish: fetch the file again",
        )
    if needed < size:
        raise DataError(
            f"`{file}` has {size - needed:,} bytes after its last tensor "
            f"(the header accounts for {needed:,} of {size:,})",
            hint=FRESH_COPY,
        )
    return tensors


def _entry(name: str, value: Any, file: str) -> tuple[int, int, str, tuple[int, ...]]:
    """Return (begin, end, dtype, shape) of one header entry."""

    def fault(text: str) -> DataError:
        return DataError(f"`{file}`: tensor `{name}` {text}", hint=FRESH_COPY)

    if type(value) is not dict or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise fault("is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPE_BYTES:
        if dtype in SUBBYTE_DTYPES:
            raise RecipeError(
                f"`{file}`: tensor `{name}` has the quantised dtype {dtype}; "
                "quantised checkpoints are not supported by this version",
                hint="merge the 16-bit checkpoint that it was made from",
            )
        raise fault(f"has the unknown dtype {dtype!r}")
    if type(shape) is not list:
        raise fault("has a shape that is not a list")
    nbytes = DTYPE_BYTES[dtype]
    for length in shape:
        if type(length) is not int or length < 0:
            raise fault(f"has the size {length!r} in its shape; sizes are integers from 0 up")
        nbytes *= length
    # A zero hides the other sizes in the product, so these are bounded on their own.
    if nbytes >= _BYTES_LIMIT or any(length >= _BYTES_LIMIT for length in shape):
        raise fault(f"has a shape whose product overflows: {shape}")
    if type(offsets) is not list or len(offsets) != 2 or any(type(o) is not int for o in offsets):
        raise fault("has data_offsets that are not two integers")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise fault(f"has data_offsets out of range: {offsets}")
    if end - begin != nbytes:
        raise fault(f"spans {end - begin:,} bytes, but {dtype} {shape} needs {nbytes:,}")
    return begin, end, dtype, tuple(shape)
