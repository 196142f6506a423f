"""Stores: several fine-tunes of one base, compressed together into one safetensors file.

What is stored of a tensor belongs to all tasks (`TENSOR:PART`) or to one (`TENSOR:PART:TASK`). One
task is read as a patch, which knows nothing of the others. `docs/compression.md` is the
specification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mergekit_lite.checkpoint._types import Header
from mergekit_lite.checkpoint.adapter import Adapter
from mergekit_lite.checkpoint.described import description_in, metadata_of
from mergekit_lite.checkpoint.patch import SAME, WHOLE, Patch, PatchRow, as_adapter, plain, row_of
from mergekit_lite.errors import DataError, Problem, RecipeError, nearest

KEY = "mergekit_lite.store"
VERSION = 1
TASK_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
"""What a task may be called."""

_AGAIN = "the file is damaged: fetch it again, or make it anew with `mergekit-lite store pack`"
_BASE = ("dtype", "shape", "base")
_OWN = ("scheme", "crc32", "norm", "error", "numbers")


@dataclass(frozen=True)
class Store:
    """The description of a store.

    Attributes:
        method: by which it was made.
        parameters: of the method.
        base: the base's name, as it was given.
        tasks: name of a task -> tensor of the base -> what is said about it; of every task all of
            the base's tensors.
    """

    method: str
    parameters: Mapping[str, Any]
    base: str
    tasks: Mapping[str, Mapping[str, PatchRow]]

    def patch(self, task: str) -> Patch:
        """Return the description of one task.

        Raises:
            RecipeError: there is none of this name.
        """
        if task not in self.tasks:
            hint = nearest(task, self.tasks) or f"its tasks: {', '.join(self.tasks)}"
            raise RecipeError(f"the store has no task `{task}`", hint=hint)
        return Patch(self.method, self.parameters, self.base, self.tasks[task])

    def metadata(self) -> dict[str, str]:
        """Return the strings that the file carries."""
        rows = next(iter(self.tasks.values()))
        told = {
            "version": VERSION,
            "method": self.method,
            "parameters": dict(self.parameters),
            "base": self.base,
            "base_columns": list(_BASE),
            "tensors": {name: [getattr(row, key) for key in _BASE] for name, row in rows.items()},
            "columns": list(_OWN),
            "tasks": {
                task: {name: _own(row) for name, row in rows.items() if row.scheme != SAME}
                for task, rows in self.tasks.items()
            },
        }
        return metadata_of(KEY, told)


@dataclass(frozen=True)
class Place:
    """What a stored tensor is of: a part of a tensor of the base, of one task or (empty) of all."""

    tensor: str
    part: str
    task: str = ""

    @property
    def stored(self) -> str:
        """Its name in the file."""
        return f"{self.tensor}:{self.part}:{self.task}" if self.task else self.alone

    @property
    def alone(self) -> str:
        """Its name in a patch of that task alone."""
        return f"{self.tensor}:{self.part}"


def is_store(header: Header) -> bool:
    """Return whether a file is a store."""
    return KEY in header.metadata


def read_store(header: Header, label: str) -> Store:
    """Return what a store says of itself; only the header is looked at.

    Raises:
        DataError: the description is damaged, is that of another version, or does not fit what is
            stored.
    """
    told = description_in(header.metadata, KEY, VERSION, label, what="store", again=_AGAIN)
    try:
        store = _store(told)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the store is not described as it should be: {error}", label) from error
    problems = [
        Problem(f"`{key}` is stored, and the description does not know it", label, _AGAIN)
        for key, place in places(store, header).items()
        if place is None
    ]
    if problems:
        raise DataError(problems)
    return store


def places(store: Store, header: Header) -> dict[str, Place | None]:
    """Return what each stored tensor is of; None where the description does not know it."""
    known = next(iter(store.tasks.values())).keys()
    found: dict[str, Place | None] = {}
    for key in header.tensors:
        tensor, _, part = key.rpartition(":")
        found[key] = Place(tensor, part) if tensor in known else None
        head, _, task = key.rpartition(":")
        tensor, _, part = head.rpartition(":")
        if tensor in known and task in store.tasks:
            found[key] = Place(tensor, part, task)
    return found


def read_task(store: Store, task: str, header: Header, label: str) -> Adapter:
    """Return one task of a store as what it adds to each tensor of the base.

    Args:
        store: the description.
        task: name of the task.
        header: of the file.
        label: what errors call the file.

    Raises:
        RecipeError: there is no such task.
        DataError: the description does not fit what is stored.
    """
    patch = store.patch(task)
    tensors = {}
    for key, place in places(store, header).items():
        if place is None or place.task not in ("", task):
            continue
        scheme = patch.rows[place.tensor].scheme
        if not place.task and scheme in (SAME, WHOLE):
            continue  # what the others share
        name = place.tensor if scheme == WHOLE else place.alone
        tensors[name] = replace(header.tensors[key], name=name)
    return as_adapter(patch, replace(header, tensors=tensors), label)


def _own(row: PatchRow) -> list[Any]:
    values = dict(zip(PatchRow.__dataclass_fields__, plain(row), strict=True))
    return [values[name] for name in _OWN]


def _store(told: Mapping[str, Any]) -> Store:
    bases = {
        name: dict(zip(told["base_columns"], values, strict=True))
        for name, values in told["tensors"].items()
    }
    tasks: dict[str, dict[str, PatchRow]] = {}
    for task, rows in told["tasks"].items():
        own = {
            name: dict(zip(told["columns"], values, strict=True)) for name, values in rows.items()
        }
        if strangers := own.keys() - bases.keys():
            raise ValueError(f"the base has no `{min(strangers)}`")
        same = {"scheme": SAME, "numbers": {}}
        tasks[task] = {
            name: row_of({**base, **own.get(name, same)}) for name, base in bases.items()
        }
    if not (tasks and bases) or not all(TASK_NAME.fullmatch(task) for task in tasks):
        raise ValueError("it has no tasks, or no tensors")
    return Store(str(told["method"]), dict(told["parameters"]), str(told["base"]), tasks)
