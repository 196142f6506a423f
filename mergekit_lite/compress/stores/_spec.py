"""What a store method says of itself, and what it is given and gives back."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.compress._spec import resolved
from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.ops._parameters import Parameter
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
class StoreMethod:
    """A way to compress the differences of several models to one base.

    Attributes:
        name: as the command line and stores say it.
        title: its common name.
        paper: where it comes from.
        doc: what it does.
        encode: compresses one tensor of all tasks.
        parameters: by name.
        keep: the parameter that says which part of each task's entries is kept, for a method that
            asks for a survey of each model; else empty.
        rescaled: what is decoded of a task is multiplied by one number, so that its sum of
            magnitudes over the whole model is that of the difference.
        vectors: checked examples.
    """

    name: str
    title: str
    paper: str
    doc: str
    encode: Encode
    parameters: Mapping[str, Parameter]
    keep: str = ""
    rescaled: bool = False
    vectors: tuple[StoreVector, ...] = ()

    @property
    def summary(self) -> str:
        """The first sentence of what it does."""
        return re.split(r"(?<=\.)\s", self.doc, maxsplit=1)[0].replace("\n", " ")

    def resolved(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, with the defaults of those that are not given.

        Raises:
            RecipeError: one is not known, or out of range; all are told.
        """
        return resolved(self.name, self.parameters, params)


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
