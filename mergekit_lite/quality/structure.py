"""Faults that weights show by themselves: numbers that are none, and layers of zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import FLOAT_DTYPES, layer_of
from mergekit_lite.checkpoint.names import stack_of
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.supplies import supply_of
from mergekit_lite.engine.tiles import float32_of
from mergekit_lite.errors import Problem
from mergekit_lite.plan.types import Job, Read

if TYPE_CHECKING:
    from mergekit_lite.sources import Model

TILE = 1 << 18
Progress = Callable[[int], Any]


@dataclass(frozen=True)
class Found:
    """What is counted of a tensor.

    Attributes:
        shape: of it.
        nonfinite: entries that are NaN or infinite.
        nonzero: entries that are not 0.
    """

    shape: tuple[int, ...]
    nonfinite: int
    nonzero: int


class Entries:
    """The entries of several models' tensors in fp32, tile by tile.

    Args:
        models: by name; checkpoints, or adapters on their base.
    """

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = models
        self._readers = Readers(models, allow_nonfinite=True)

    def tiles(self, source: str, name: str) -> Iterator[NDArray[np.float32]]:
        """Yield a tensor's entries, in order."""
        info = self.models[source].header.tensors[name]
        job = Job(name, info.dtype, info.shape, 0, 0, "copy", ())
        supply = supply_of(Read(source, name, nbytes=info.nbytes), job, self._readers)
        if supply is None:
            raise ValueError(f"`{name}` of `{source}` is not stored")
        for first in range(0, info.size, TILE):
            yield float32_of(supply, first, min(TILE, info.size - first))

    def whole(self, source: str, name: str) -> NDArray[np.float32]:
        """Return a tensor in its shape."""
        shape = self.models[source].header.tensors[name].shape
        return np.concatenate(list(self.tiles(source, name))).reshape(shape)

    def floats(self, source: str) -> list[str]:
        """Return the names of the tensors of floats that are not empty."""
        tensors = self.models[source].header.tensors
        return [n for n, info in tensors.items() if info.loaded in FLOAT_DTYPES and info.size]

    def close(self) -> None:
        """Close the weight files."""
        self._readers.close()


def counted(model: Model, progress: Progress = lambda count: None) -> dict[str, Found]:
    """Read all weights of a model once and count what is wrong with them, tensor by tensor.

    Args:
        model: to look at.
        progress: called with the bytes of each tensor.
    """
    entries = Entries({"model": model})
    found = {}
    try:
        for name in entries.floats("model"):
            nonfinite = nonzero = 0
            for tile in entries.tiles("model", name):
                nonfinite += int(np.count_nonzero(~np.isfinite(tile)))
                nonzero += int(np.count_nonzero(tile))
            info = model.header.tensors[name]
            found[name] = Found(tuple(info.shape), nonfinite, nonzero)
            progress(info.nbytes)
    finally:
        entries.close()
    return found


def faults(found: Mapping[str, Found]) -> list[Problem]:
    """Return what is wrong with weights whatever they were made of.

    Zeros in one matrix may be meant so (a block that passes its input on); a layer without a
    single weight that is not zero is not.
    """
    problems = []
    for name, one in found.items():
        if one.nonfinite:
            count = "1 entry is" if one.nonfinite == 1 else f"{one.nonfinite:,} entries are"
            hint = "find the input that has them with `inspect`, or that the merge overflowed"
            problems.append(Problem(f"{count} NaN or infinite", name, hint))
    layers: dict[tuple[str, int], list[Found]] = {}
    for name, one in found.items():
        if (layer := layer_of(name)) is not None and len(one.shape) > 1:
            layers.setdefault((stack_of(name), layer), []).append(one)
    for (stack, layer), matrices in layers.items():
        if not any(one.nonzero for one in matrices):
            problems.append(_zeros(f"{stack}.{layer}"))
    return problems


def _zeros(layer: str) -> Problem:
    hint = "it passes its input on and does nothing; see which rule or input made it"
    return Problem("all matrices of the layer are zeros", layer, hint)


def zeroed(found: Mapping[str, Found], base: Iterable[str]) -> list[Problem]:
    """Return the matrices of zeros that have weights in the base.

    Args:
        found: counts of the model.
        base: names of the base's matrices that are not all zeros.
    """
    whole = {problem.where for problem in faults(found)}
    hint = "the base has weights there; see which rule or input made it"
    return [
        Problem("all entries are zero", name, hint)
        for name in base
        if (one := found.get(name)) is not None
        and not one.nonzero
        and f"{stack_of(name)}.{layer_of(name)}" not in whole
    ]
