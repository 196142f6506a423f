"""The slices of a carved layer: which rows of which stored tensors they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mergekit_lite.checkpoint import TensorInfo
from mergekit_lite.moe.dense.carved import Carving


@dataclass(frozen=True)
class Slice:
    """A matrix of a slice: some rows of a stored tensor, taken as a matrix.

    Attributes:
        name: of the tensor.
        first: its first row of the slice.
        shape: rows and columns of the slice.
        factor: what the carve has multiplied it by.
    """

    name: str
    first: int
    shape: tuple[int, int]
    factor: float


def slices(
    carving: Carving, root: str, part: str, tensors: Mapping[str, TensorInfo]
) -> Iterator[Slice]:
    """Yield the slices of one matrix of a layer, the shared ones first.

    Args:
        carving: how the layer was carved.
        root: name of the layer.
        part: `gate`, `up` or `down`.
        tensors: of the carved model.

    Raises:
        KeyError: a tensor is not there.
    """
    family = carving.family
    down = part == "down"
    if carving.shared and family.shared:
        factor = carving.shared_factor if down else 1.0
        yield _slice(family.shared.names, root, part, 0, tensors, factor)
    for expert in range(carving.routed):
        factor = carving.factor if down else 1.0
        yield _slice(family.experts, root, part, expert, tensors, factor)


def _slice(
    names: Mapping[str, str],
    root: str,
    part: str,
    expert: int,
    tensors: Mapping[str, TensorInfo],
    factor: float,
) -> Slice:
    halves = part != "down" and "gate_up" in names
    name = f"{root}.{names['gate_up' if halves else part].format(e=expert)}"
    shape = tensors[name].shape
    rows, columns = shape[-2], shape[-1]
    first = expert * rows if len(shape) == 3 else 0
    if halves:
        rows //= 2
        first += rows if part == "up" else 0
    return Slice(name, first, (rows, columns), factor)
