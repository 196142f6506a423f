"""Data that is no running text: texts with labels, and pairs of texts that are alike or not."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from mergekit_lite.errors import DataError, Problem

VERSION = 1
"""Raised when the same data would get other scores; results of another version are not compared."""
Line = tuple[str, Mapping[str, Any]]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Label:
    """A text, or two, and which label is right.

    Attributes:
        text: the text.
        other: a second text, where the label is about both; empty where it is about one.
        label: index of the head's output from 0, or the name that the config gives it.
    """

    text: str
    other: str
    label: int | str


@dataclass(frozen=True)
class Labelled:
    """Texts with labels.

    Attributes:
        name: of the data.
        labels: in the order of the file.
    """

    name: str
    labels: tuple[Label, ...]

    @property
    def version(self) -> str:
        """What a score of it depends on, as a digest."""
        return digest(["labels", VERSION, *[[v.text, v.other, v.label] for v in self.labels]])

    @property
    def units(self) -> tuple[str, ...]:
        """What is scored one by one, as text."""
        return tuple(f"{one.text}\n{one.other}" for one in self.labels)

    def part(self, chosen: slice) -> Self:
        """Return some of the units as data of their own."""
        return replace(self, labels=self.labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Pair:
    """Two texts and how alike people find them.

    Attributes:
        text: one of them.
        other: the other.
        similarity: on any scale; more is more alike.
    """

    text: str
    other: str
    similarity: float


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts.

    Attributes:
        name: of the data.
        pairs: in the order of the file.
    """

    name: str
    pairs: tuple[Pair, ...]

    @property
    def version(self) -> str:
        """What a score of it depends on, as a digest."""
        return digest(["pairs", VERSION, *[[v.text, v.other, v.similarity] for v in self.pairs]])

    @property
    def units(self) -> tuple[str, ...]:
        """What is scored one by one, as text."""
        return tuple(f"{one.text}\n{one.other}" for one in self.pairs)

    def part(self, chosen: slice) -> Self:
        """Return some of the units as data of their own."""
        return replace(self, pairs=self.pairs[chosen])

    def __len__(self) -> int:
        return len(self.pairs)


def labelled(name: str, lines: Sequence[Line]) -> Labelled:
    """Return texts with labels from the lines of a file, each with its place.

    Raises:
        DataError: lines are none, with all of the first ten.
    """
    hint = 'write {"text": "It rained.", "label": 1}, or "label": "NAME"; "other" is a second text'
    return Labelled(name, _all(lines, _label, hint))


def pairs(name: str, lines: Sequence[Line]) -> Pairs:
    """Return pairs from the lines of a file, each with its place.

    Raises:
        DataError: lines are none, or all are alike as much as each other.
    """
    hint = 'write {"text": "It rained.", "other": "The street is wet.", "similarity": 3.5}'
    found = _all(lines, _pair, hint)
    if len({pair.similarity for pair in found}) < 2:
        what = "all pairs have one `similarity`, with which nothing correlates"
        raise DataError(what, lines[0][0], "give pairs that are more and less alike")
    return Pairs(name, found)


def digest(parts: Sequence[object]) -> str:
    """Return a sha256 over values of JSON."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def _all(
    lines: Sequence[Line], read: Callable[[Mapping[str, Any]], Read], hint: str
) -> tuple[Read, ...]:
    found, problems = [], []
    for where, value in lines:
        try:
            found.append(read(value))
        except ValueError as error:
            problems.append(Problem(str(error), where, hint))
    if problems:
        raise DataError(problems[:10])
    return tuple(found)


def _label(value: Mapping[str, Any]) -> Label:
    label = value.get("label")
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ValueError("`label` is neither the number of a label, from 0, nor its name")
    other = value.get("other", "")
    if not isinstance(other, str):
        raise ValueError("`other` is no text")
    return Label(_text(value, "text"), other, label)


def _pair(value: Mapping[str, Any]) -> Pair:
    similarity = value.get("similarity")
    if isinstance(similarity, bool) or not isinstance(similarity, int | float):
        raise ValueError("`similarity` is no number")
    if not math.isfinite(similarity):
        raise ValueError("`similarity` is not finite")
    return Pair(_text(value, "text"), _text(value, "other"), float(similarity))


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`{key}` is no text")
    return text
