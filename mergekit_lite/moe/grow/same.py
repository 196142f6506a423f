"""Whether weights that models must share are the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit_lite.errors import DataError, Problem

if TYPE_CHECKING:
    from mergekit_lite.checkpoint import Reader, TensorInfo
    from mergekit_lite.sources import Model

_TILE = 8 << 20


def require_same(models: Mapping[str, Model], same: Mapping[str, Sequence[Sequence[str]]]) -> int:
    """Compare tensors of models with those of the base, byte by byte.

    Args:
        models: the inputs, opened.
        same: input -> pairs of a tensor's name in the base and its own.

    Returns:
        Number of bytes that were compared.

    Raises:
        DataError: some differ; all are named.
    """
    problems: list[Problem] = []
    compared = 0
    for name, pairs in same.items():
        with ExitStack() as stack:
            sides = [_Side(models["base"], stack), _Side(models[name], stack)]
            differing = []
            for ours, theirs in pairs:
                compared += sides[0].tensors[ours].nbytes
                if not _alike(sides[0].tiles(ours), sides[1].tiles(theirs)):
                    differing.append(theirs)
        problems += _problems(name, differing, len(pairs))
    if problems:
        raise DataError(problems)
    return compared


class _Side:
    """The tensors of one model, read tile by tile; files stay open."""

    def __init__(self, model: Model, stack: ExitStack) -> None:
        self.model, self.stack = model, stack
        self.tensors: Mapping[str, TensorInfo] = model.header.tensors
        self.readers: dict[str, Reader] = {}

    def tiles(self, name: str) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        info = self.tensors[name]
        if info.file not in self.readers:
            reader = self.readers[info.file] = self.model.open(info.file)
            self.stack.callback(reader.close)
        for first in range(0, info.nbytes, _TILE):
            tile = np.empty(min(_TILE, info.nbytes - first), np.uint8)
            self.readers[info.file].read_into(tile, info.start + first)
            yield tile


def _alike(
    one: Iterator[np.ndarray[Any, np.dtype[np.uint8]]],
    other: Iterator[np.ndarray[Any, np.dtype[np.uint8]]],
) -> bool:
    return all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))


def _problems(name: str, differing: Sequence[str], count: int) -> Iterator[Problem]:
    if differing:
        listed = ", ".join(f"`{tensor}`" for tensor in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        yield Problem(
            f"{len(differing)} of {count} weights of expert `{name}` are not the base's:"
            f" {listed}{more}",
            f"experts.{name}",
            "experts work with what they were trained beside; `rest: base` takes the base's all"
            " the same",
        )
