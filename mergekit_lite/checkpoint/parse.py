"""Parses the header of one safetensors file and believes nothing that it says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergekit_lite.checkpoint._types import DTYPE_BYTES, TensorInfo
from mergekit_lite.errors import DataError, RecipeError, SourceError

HEADER_LIMIT = 100_000_000
"""Most bytes of JSON that the safetensors format allows."""

FRESH_COPY = "the file is damaged or was not written as safetensors: fetch or save it again"
FRESH_TEXT = "the file is damaged: fetch it again from where the model comes from"

# Larger than any address space: a product beyond it is an attack or rot, never a tensor.
_BYTES_LIMIT = 1 << 63
# Their entries share bytes. A tuple, because what is looked up may be no hashable value.
_SUBBYTE_DTYPES = ("F4", "F6_E2M3", "F6_E3M2")
_KEYS = {"dtype", "shape", "data_offsets"}

_PICKLE = (
    "is a PyTorch pickle, not safetensors",
    "convert it: `mergekit-lite convert FILE -o DIR`",
)
_PAGE = (
    "is a web page, not safetensors",
    "the download saved an error or log-in page: download the file again",
)
_OTHER_FORMATS: Mapping[bytes, tuple[str, str]] = {
    b"version https://git-lfs": (
        "is a git-lfs pointer, not the weights",
        "run `git lfs pull` in its folder, or download the file itself",
    ),
    b"GGUF": (
        "is a GGUF file, not safetensors",
        "merging needs the 16-bit safetensors checkpoint it was made from",
    ),
    b"PK\x03\x04": _PICKLE,
    # The magic number of torch.save before it wrote zip files.
    b"\x80\x02\x8a\x0a": _PICKLE,
    b"<!DOCTYPE": _PAGE,
    b"<html": _PAGE,
    b"<?xml": _PAGE,
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
    return _parse(data, file, file, file_size)


def read_file_header(path: Path, file: str) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """Read the header of the file at `path`; also return the file's size in bytes.

    Raises:
        SourceError: the file cannot be opened.
        DataError, RecipeError: as `read_header_bytes`.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
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
    tensors, metadata = _parse(data, file, str(path), size)
    return tensors, metadata, size


def _parse(
    data: bytes | bytearray, file: str, label: str, file_size: int
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Parse a header; tensors are given `file`, errors speak of `label`."""
    end = header_end(bytes(data[:64]), label, file_size)
    if len(data) < end:
        raise DataError(
            f"`{label}` is cut short: its header needs {end:,} bytes, {len(data):,} are there",
            hint=FRESH_COPY,
        )
    raw = parse_json(memoryview(data)[8:end], label)
    metadata = raw.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise DataError(f"`{label}`: `__metadata__` is not a map of strings", hint=FRESH_COPY)
    spans = []
    for name, value in raw.items():
        try:
            spans.append((*_entry(value), name))
        except _Fault as fault:
            what = f"`{label}`: tensor `{name}` {fault}"
            if isinstance(fault, _Quantised):
                hint = "merge the 16-bit checkpoint that it was made from"
                raise RecipeError(what, hint=hint) from None
            raise DataError(what, hint=FRESH_COPY) from None
    spans.sort()
    return _layout(spans, file, label, end, file_size), metadata


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


def parse_json(text: bytes | memoryview, file: str, hint: str = FRESH_COPY) -> dict[str, Any]:
    """Parse a JSON object, refusing what `json` lets pass: repeated keys and lone surrogates.

    Raises:
        DataError: the text is not such an object.
    """
    try:
        value = json.loads(str(text, "utf-8"), object_pairs_hook=_unique(file, hint))
    except (ValueError, RecursionError) as error:
        raise DataError(f"`{file}` does not hold valid JSON: {error}", hint=hint) from error
    if not isinstance(value, dict):
        raise DataError(f"`{file}` does not hold a JSON object", hint=hint)
    try:
        "".join(value).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"`{file}`: a name is not valid Unicode", hint=hint) from error
    return value


def _unique(file: str, hint: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in found if names.count(name) > 1)
            raise DataError(f"`{file}`: the JSON key `{twice}` appears twice", hint=hint)
        return found

    return pairs


class _Fault(Exception):
    """What is wrong with one entry, without its name."""


class _Quantised(_Fault):
    """The entry is sound, but its numbers are codes."""


def _entry(value: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """Return (begin, end, dtype, shape) of one header entry."""
    if type(value) is not dict or value.keys() != _KEYS:
        raise _Fault("is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPE_BYTES:
        if dtype in _SUBBYTE_DTYPES:
            raise _Quantised(f"has the quantised dtype {dtype}, not supported by this version")
        raise _Fault(f"has the unknown dtype {dtype!r}")
    if type(shape) is not list:
        raise _Fault("has a shape that is not a list")
    nbytes = DTYPE_BYTES[dtype]
    for length in shape:
        if type(length) is not int or length < 0:
            raise _Fault(f"has the size {length!r} in its shape; sizes are integers from 0 up")
        # Each size is bounded on its own too, because a zero hides the others in the product.
        nbytes *= length
        if nbytes >= _BYTES_LIMIT or length >= _BYTES_LIMIT:
            raise _Fault(f"has a shape whose product overflows: {shape}")
    if type(offsets) is not list or len(offsets) != 2:
        raise _Fault("has data_offsets that are not two integers")
    begin, end = offsets
    if type(begin) is not int or type(end) is not int:
        raise _Fault("has data_offsets that are not two integers")
    if not 0 <= begin <= end:
        raise _Fault(f"has data_offsets out of range: {offsets}")
    if end - begin != nbytes:
        raise _Fault(f"spans {end - begin:,} bytes, but {dtype} {shape} needs {nbytes:,}")
    return begin, end, dtype, tuple(shape)


def _layout(
    spans: Sequence[tuple[int, int, str, tuple[int, ...], str]],
    file: str,
    label: str,
    data_start: int,
    size: int,
) -> dict[str, TensorInfo]:
    """Check that the entries tile the data of the file without a hole."""
    tensors, position = {}, 0
    for begin, end, dtype, shape, name in spans:
        if begin != position:
            fault = "overlaps the one before it" if begin < position else "leaves a gap before it"
            raise DataError(
                f"`{label}`: tensor `{name}` {fault} (starts at {begin}, expected {position})",
                hint=FRESH_COPY,
            )
        tensors[name] = TensorInfo(name, dtype, shape, file, data_start + begin)
        position = end
    needed = data_start + position
    if needed > size:
        raise DataError(
            f"`{label}` is cut short: the header needs {needed:,} bytes, the file has {size:,}",
            hint="the download or the copy did not finish: fetch the file again",
        )
    if needed < size:
        raise DataError(
            f"`{label}` has {size - needed:,} bytes after its last tensor "
            f"(the header accounts for {needed:,} of {size:,})",
            hint=FRESH_COPY,
        )
    return tensors
