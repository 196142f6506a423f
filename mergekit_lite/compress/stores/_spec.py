"""What a store method says of itself, and what it is given and gives back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.compress._spec import Method
from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.ops._spec import parameters_of


@dataclass(frozen=True)
class Deltas:
    """What the tasks of a store add to one tensor.

    Attributes:
        tasks: name of a task -> its difference; those that leave the tensor alone are not there.
        count: tasks of the store.
    """

    tasks: Mapping[str, Delta]
    count: int


@dataclass(frozen=True)
class Joint:
    """The differences of one tensor, compressed together.

    Attributes:
        tasks: name of a task -> what is stored for it alone; None where its tensor is stored whole.
        shared: what is stored once for all of them; part of every task's scheme.
    """

    tasks: Mapping[str, Encoded | None]
    shared: Mapping[str, NDArray[Any]] = field(default_factory=dict)


Encode = Callable[..., Joint]


@dataclass(frozen=True)
class StoreVector:
    """One hand-checkable case: differences of one tensor, parameters, what is decoded again.

    Attributes:
        deltas: the difference of each task, as nested lists.
        expect: what each is decoded to; None where the tensor is stored whole.
        params: of the method.
        tolerance: largest error of an entry.
        source: where it comes from.
    """

    deltas: Sequence[Any]
    expect: Sequence[Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    source: str = ""


@dataclass(frozen=True)
class StoreMethod(Method):
    """A way to compress the differences of several models to one base.

    Attributes:
        encode: compresses one tensor of all tasks.
        rescaled: what is decoded of a task is multiplied by one number, so that its sum of
            magnitudes over the whole model is that of the difference.
        vectors: checked examples.
    """

    encode: Encode
    rescaled: bool = False
    vectors: tuple[StoreVector, ...] = ()


METHODS: dict[str, StoreMethod] = {}


def store_method(
    *,
    title: str,
    paper: str,
    keep: str = "",
    rescaled: bool = False,
    vectors: Sequence[StoreVector] = (),
) -> Callable[[Encode], Encode]:
    """Register a function `(Deltas, *, parameters) -> Joint` as a method of its name."""

    def decorate(function: Encode) -> Encode:
        parameters, _ = parameters_of(function)
        doc, name = inspect.getdoc(function) or "", function.__name__
        METHODS[name] = StoreMethod(
            name, title, paper, doc, function, parameters, keep, rescaled, tuple(vectors)
        )
        return function

    return decorate


def total(deltas: Deltas) -> NDArray[np.float32]:
    """Return the sum of all differences, added in the order of the tasks."""
    found = [delta.values for delta in deltas.tasks.values()]
    out = found[0].copy()
    for values in found[1:]:
        out += values
    return out
