"""Raw tiles for the fused kernels, made from numbers that can be checked by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from mergekit_lite.kernels.codec import CODES
from mergekit_lite.kernels.row_keys import row_scratch
from mergekit_lite.kernels.sums import SUM_BLOCK
from mergekit_lite.kernels.tile import BLOCK, work_shape

TORCH = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


@dataclass
class Tile:
    """One tile of a base and of experts, as it lies in a worker's memory.

    Args:
        base: the base's entries; None where it is not read.
        experts: each expert's entries; None where it leaves the tensor as it is.
        dtype: of all inputs.
        first: flat index of the first entry.
        deltas: numbers of the experts that are deltas already.
    """

    base: Sequence[float] | None
    experts: Sequence[Sequence[float] | None]
    dtype: str = "F32"
    first: int = 0
    deltas: Sequence[int] = ()
    raw: NDArray[np.uint8] = field(init=False)
    at: NDArray[np.int64] = field(init=False)
    code: NDArray[np.int64] = field(init=False)
    is_delta: NDArray[np.int64] = field(init=False)
    bad: NDArray[np.int64] = field(init=False)
    norms: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        inputs = [self.base, *self.experts]
        self.count = next(len(values) for values in inputs if values is not None)
        parts, at, end = [], [], 0
        for values in inputs:
            at.append(end)
            if values is not None:
                tensor = torch.tensor(values, dtype=torch.float64).to(TORCH[self.dtype])
                # A gap between inputs: what is read there would show.
                parts += [tensor.view(torch.uint8).numpy(), np.full(64, 0x5A, np.uint8)]
                end += parts[-2].nbytes + 64
        self.raw = np.concatenate(parts)
        self.at = np.array(at, np.int64)
        self.code = np.array([-1 if v is None else CODES[self.dtype] for v in inputs], np.int64)
        self.is_delta = np.zeros(len(inputs), np.int64)
        self.is_delta[[1 + e for e in self.deltas]] = 1
        self.is_delta[self.code < 0] = 1
        self.bad = np.zeros(len(inputs) + 1, np.int64)
        self.norms = np.zeros(len(inputs))


@dataclass(frozen=True)
class Transforms:
    """Transforms by (expert, position), as the kernels take them."""

    kinds: NDArray[np.int64]
    floats: NDArray[np.float32]
    ints: NDArray[np.int64]


def transforms(
    experts: int, given: Mapping[tuple[int, int], tuple[int, float, Sequence[int]]] | None = None
) -> Transforms:
    """Return arrays for {(expert, position): (kind, factor, numbers)}."""
    given = given or {}
    depth = max((1 + position for _, position in given), default=0)
    made = Transforms(
        np.zeros((experts, depth), np.int64),
        np.ones((experts, depth), np.float32),
        np.zeros((experts, depth, 6), np.int64),
    )
    for (expert, position), (kind, factor, numbers) in given.items():
        made.kinds[expert, position] = kind
        made.floats[expert, position] = factor
        made.ints[expert, position, : len(numbers)] = numbers
    return made


def memory(experts: int, block: int = BLOCK) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what a row lends a kernel (`work`, `scratch`), full of what others have left there."""
    work = np.full(work_shape(experts, max(block, SUM_BLOCK)), 7.5, np.float32)
    return work, np.full(row_scratch(block), -9, np.int64)


def bits(value: float) -> int:
    """Return the magnitude bits of an fp32 number."""
    return int(np.abs(np.float32(value)).view(np.uint32))
