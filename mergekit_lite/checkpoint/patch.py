"""Patches: what a fine-tune adds to its base, compressed into one safetensors file.

The description is JSON in the file's metadata, under `mergekit_lite.patch`; its sha256 stands
beside it. `docs/compression.md` is the specification.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergekit_lite.checkpoint._types import DTYPE_BYTES, Header, TensorInfo
from mergekit_lite.checkpoint.adapter import Adapter, LoraFactors
from mergekit_lite.checkpoint.described import description_in, metadata_of
from mergekit_lite.errors import DataError, Problem

KEY = "mergekit_lite.patch"
VERSION = 1

SAME = "same"
"""Scheme of a tensor that is the base's."""
WHOLE = "whole"
"""Scheme of a tensor of which the fine-tune's own entries are stored."""

_AGAIN = "the file is damaged: fetch it again, or make it anew"
_DIGEST = re.compile(r"[0-9a-f]{32}")
_CRC = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class PatchRow:
    """What a patch says about one tensor of its base.

    Attributes:
        dtype, shape: of the base's tensor.
        base: the first 32 hexadecimal digits of the sha256 of the base's entries.
        scheme: how the difference is stored.
        crc32: of all stored parts, one after the other by name.
        norm: L2 norm of the difference.
        error: L2 norm of what is missed of it.
        numbers: what the scheme needs to know beside the stored parts.
    """

    dtype: str
    shape: tuple[int, ...]
    base: str
    scheme: str
    crc32: str = "00000000"
    norm: float = 0.0
    error: float = 0.0
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Packed:
    """A difference as it is stored: enough to decode it.

    Attributes:
        name: of the base's tensor, as the patch calls it.
        shape: of that tensor.
        scheme: how it is stored.
        numbers: what the scheme needs to know beside the parts.
        parts: the stored tensors, by the names that the scheme has for them.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    numbers: Mapping[str, float]
    parts: Mapping[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    def number(self, name: str) -> float:
        """Return a number that the scheme needs.

        Raises:
            DataError: the patch does not say it.
        """
        if name not in self.numbers:
            raise DataError(f"the patch does not say `{name}`", self.name, _AGAIN)
        return self.numbers[name]

    def part(self, name: str, dtype: str, entries: int | None = None) -> TensorInfo:
        """Return a part that the scheme needs, of this dtype and number of entries.

        Raises:
            DataError: it is not there, or is another.
        """
        info = self.parts.get(name)
        if info is None:
            raise DataError(f"the patch lacks `{name}`", self.name, _AGAIN)
        if info.dtype != dtype or entries not in (None, info.size):
            wanted = f"{entries:,} of {dtype}" if entries is not None else dtype
            what = f"`{name}` has {info.size:,} entries of {info.dtype}, wanted are {wanted}"
            raise DataError(what, self.name, _AGAIN)
        return info


@dataclass(frozen=True)
class Patch:
    """The description of a patch.

    Attributes:
        codec: by which it was made.
        parameters: of the codec.
        base: the base's name, as it was given.
        rows: tensor of the base -> what is said about it; all of the base's tensors.
    """

    codec: str
    parameters: Mapping[str, Any]
    base: str
    rows: Mapping[str, PatchRow]

    @property
    def fingerprint(self) -> str:
        """What the base must be, as one digest over all of its tensors."""
        told = [(name, row.dtype, row.shape, row.base) for name, row in sorted(self.rows.items())]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def metadata(self) -> dict[str, str]:
        """Return the strings that the file carries."""
        told = {
            "version": VERSION,
            "codec": self.codec,
            "parameters": dict(self.parameters),
            "base": self.base,
            "columns": list(PatchRow.__dataclass_fields__),
            "tensors": {name: plain(row) for name, row in self.rows.items()},
        }
        return metadata_of(KEY, told)


def is_patch(header: Header) -> bool:
    """Return whether a file is a patch."""
    return KEY in header.metadata


def parts_of(name: str, row: PatchRow, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the stored tensors that a row is made of, by name, in the order of their names."""
    if row.scheme == WHOLE:
        return {"": tensors[name]} if name in tensors else {}
    found = {key[len(name) + 1 :]: info for key, info in tensors.items() if _is_part(key, name)}
    return dict(sorted(found.items()))


def packed(patch: Patch, name: str, tensors: Mapping[str, TensorInfo]) -> Packed:
    """Return how the difference of a tensor is stored."""
    row = patch.rows[name]
    return Packed(name, row.shape, row.scheme, row.numbers, parts_of(name, row, tensors))


def read_patch(header: Header, label: str) -> Adapter:
    """Return a patch as what it adds to each tensor of its base; only the header is looked at.

    Args:
        header: of the file.
        label: what errors call the file.

    Raises:
        DataError: the description is damaged, is that of another version, or does not fit what is
            stored.
    """
    return as_adapter(_described(header.metadata, label), header, label)


def as_adapter(patch: Patch, header: Header, label: str) -> Adapter:
    """Return what a description says as what is added to each tensor of the base.

    Args:
        patch: the description.
        header: of the file, with the stored tensors under the names that a patch has for them.
        label: what errors call the file.

    Raises:
        DataError: the description does not fit what is stored.
    """
    stored: dict[str, dict[str, TensorInfo]] = {}
    for key, info in header.tensors.items():
        name = key if key in patch.rows else key.rpartition(":")[0]
        stored.setdefault(name, {})[key] = info
    problems = list(_misfits(patch, stored, label))
    if problems:
        raise DataError(problems)
    factors, whole, shapes = {}, {}, {}
    for name, row in patch.rows.items():
        shapes[name] = row.shape
        if row.scheme == WHOLE:
            whole[name] = name
        elif row.scheme != SAME:
            parts = tuple(sorted(stored[name]))
            factors[name] = LoraFactors("", parts[0], 1.0, packed=name, parts=parts)
    return Adapter(header, factors, whole, {}, patch.base, shapes=shapes, patch=patch)


def _is_part(key: str, name: str) -> bool:
    return key.startswith(name) and key[len(name) : len(name) + 1] == ":"


def plain(row: PatchRow) -> list[Any]:
    """Return the values of a row as JSON-able data, in the order of its fields."""
    values = [getattr(row, name) for name in PatchRow.__dataclass_fields__]
    return [float(f"{v:.6g}") if type(v) is float else v for v in values]


def _described(metadata: Mapping[str, str], label: str) -> Patch:
    told = description_in(metadata, KEY, VERSION, label, what="patch", again=_AGAIN)
    try:
        columns = told["columns"]
        rows = {
            name: row_of(dict(zip(columns, values, strict=True)))
            for name, values in told["tensors"].items()
        }
        return Patch(str(told["codec"]), dict(told["parameters"]), str(told["base"]), rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the patch is not described as it should be: {error}", label) from error


def row_of(values: Mapping[str, Any]) -> PatchRow:
    """Return a row from the values of its fields, as JSON has them.

    Raises:
        ValueError, KeyError, TypeError: they are not those of a row.
    """
    row = PatchRow(**{**values, "shape": tuple(values["shape"]), "numbers": values["numbers"]})
    if row.dtype not in DTYPE_BYTES or not all(type(n) is int and n >= 0 for n in row.shape):
        raise ValueError(f"no tensor is {row.dtype} {list(row.shape)}")
    if not (_DIGEST.fullmatch(row.base) and _CRC.fullmatch(row.crc32)):
        raise ValueError(f"`{row.base}` or `{row.crc32}` is no checksum")
    return row


def _misfits(
    patch: Patch, stored: Mapping[str, Mapping[str, TensorInfo]], label: str
) -> Iterator[Problem]:
    for name, row in patch.rows.items():
        parts = stored.get(name, {})
        if row.scheme == SAME and parts:
            yield Problem(f"`{name}` is said to be the base's, and is stored", label, _AGAIN)
        elif row.scheme == WHOLE and (list(parts) != [name] or parts[name].shape != row.shape):
            yield Problem(f"`{name}` is not stored whole, as is said", label, _AGAIN)
        elif row.scheme not in (SAME, WHOLE) and not parts:
            yield Problem(f"nothing is stored of `{name}`", label, _AGAIN)
    for name in stored.keys() - patch.rows.keys():
        key = next(iter(stored[name]))
        yield Problem(f"`{key}` is stored, and the description does not know it", label, _AGAIN)
