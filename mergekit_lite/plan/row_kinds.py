"""What a row may be beside a plain tensor: a factor of an adapter, or the codes of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mergekit_lite.checkpoint.coded.schemes import Codes


@dataclass(frozen=True, slots=True)
class Fusion:
    """What a row of an adapter is: one factor of a weight's merged delta.

    Attributes:
        method: how factors are merged: `cat`, `svd`, `core_space`, `knots`, `linear` or `mean`.
        part: `A` (rank x in) or `B` (out x rank).
        rank: of the result.
        weight: the base's tensor that it changes.
        shape: of that tensor.
    """

    method: str
    part: str
    rank: int
    weight: str
    shape: tuple[int, ...]

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> Fusion:
        """Rebuild what was JSON."""
        return cls(**{**value, "shape": tuple(value["shape"])})


@dataclass(frozen=True, slots=True)
class Part:
    """One of the tensors that a quantised row writes; `start` is as that of the row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Coding:
    """What a row becomes whose entries are written as codes; the row itself is then in fp32.

    Attributes:
        scheme: by name.
        dtype: that the tensor would have if it were not quantised.
        codes: how entries become codes.
        parts: the tensors that are written in its place: codes, scales and what else there is.
    """

    scheme: str
    dtype: str
    codes: Codes
    parts: tuple[Part, ...]

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> Coding:
        """Rebuild what was JSON."""
        codes = {**value["codes"], "block": tuple(value["codes"]["block"])}
        parts = tuple(Part(**{**part, "shape": tuple(part["shape"])}) for part in value["parts"])
        return cls(**{**value, "codes": Codes(**codes), "parts": parts})
