"""What an adapter makes of the base's tensors, tile by tile: deltas, or weights made from them.

Plain LoRA, biases and fused experts are deltas. DoRA, trainable tokens and an adapter with its
own copy of the base say what the weight is, and so read the base beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import DTYPE_BYTES, LoraFactors
from mergekit_lite.engine.adapted_experts import fused_experts
from mergekit_lite.engine.low_rank import Floats, LowRank, product
from mergekit_lite.engine.tiles import as_float32
from mergekit_lite.errors import DataError
from mergekit_lite.kernels.lora import strips

if TYPE_CHECKING:
    from mergekit_lite.engine.inputs import Readers
    from mergekit_lite.engine.joined import JoinedRead
    from mergekit_lite.engine.supplies import Supply
    from mergekit_lite.plan.types import Job, Read

_SWEPT: Final = 1 << 18
"""Entries of the weight that are looked at in one go when lengths are measured, about."""


@dataclass
class WithRows:
    """The base's weight with some rows of the adapter's own."""

    base: Callable[[int, int], Floats]
    rows: dict[int, Floats]
    width: int
    dtype = "F32"
    is_delta = False

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        values = out.view(np.float32)
        values[:] = self.base(first, count)
        for row, own in self.rows.items():
            begin = row * self.width - first
            low, high = max(begin, 0), min(begin + self.width, count)
            if low < high:
                values[low:high] = own[low - begin : high - begin]


@dataclass
class Adapted:
    """A whole weight: the base's plus a delta, with rows scaled to lengths of their own in DoRA.

    Attributes:
        base: returns entries [first, first + count) of the weight under the delta, in fp32.
        delta: what is added.
        shape: rows and width of the stored weight as a matrix.
        magnitude: length of each output's weights, which lie in a row; in a column where
            `by_column`; None for no change of length.
    """

    base: Callable[[int, int], Floats]
    delta: LowRank
    shape: tuple[int, int]
    magnitude: Floats | None = None
    by_column: bool = False
    dtype = "F32"
    is_delta = False

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        values = out.view(np.float32)
        values[:] = self._sum(first, count)
        if self.magnitude is not None:
            flat = np.arange(first, first + count)
            width = self.shape[1]
            values *= self._factors[flat % width if self.by_column else flat // width]

    def _sum(self, first: int, count: int) -> Floats:
        total = np.empty(count, np.float32)
        self.delta.fill(first, count, total.view(np.uint8))
        total += self.base(first, count)
        return total

    @cached_property
    def _factors(self) -> Floats:
        """What each output is multiplied by: its magnitude over its length now.

        Squares are added in fp64, by rows in pieces that depend on the shape alone.
        """
        if self.magnitude is None:
            raise DataError("there is no magnitude to scale to")
        rows, width = self.shape
        squares = np.zeros(width if self.by_column else rows, np.float64)
        piece = max(_SWEPT // max(width, 1), 1)
        for row in range(0, rows, piece):
            n = min(piece, rows - row)
            part = self._sum(row * width, n * width).reshape(n, width).astype(np.float64)
            if self.by_column:
                squares += (part * part).sum(axis=0)
            else:
                squares[row : row + n] = (part * part).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # found as a non-finite input
            return (self.magnitude / np.sqrt(squares)).astype(np.float32)


@dataclass
class Truncated:
    """The base's weight without its smallest singular values, plus a delta: KaSA.

    Attributes:
        base: returns entries [first, first + count) of the base's weight, in fp32.
        delta: what is added.
        shape: of the weight.
        cut: how many singular values are taken off.
    """

    base: Callable[[int, int], Floats]
    delta: LowRank
    shape: tuple[int, int]
    cut: int
    dtype = "F32"
    is_delta = False

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        self.delta.fill(first, count, out)
        out.view(np.float32)[:] += self._kept[first : first + count]

    @cached_property
    def _kept(self) -> Floats:
        """The weight less its part of small singular values, by the full SVD on one thread."""
        import torch

        torch.set_num_threads(1)  # the same digits whatever else runs
        weight = torch.from_numpy(self.base(0, prod(self.shape))).reshape(self.shape)
        if not torch.isfinite(weight).all():
            return weight.numpy().reshape(-1)  # found as a non-finite input
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        small = (u[:, -self.cut :] * s[-self.cut :]) @ v[-self.cut :]
        kept: Floats = (weight - small).numpy().reshape(-1)
        return kept


def adapter_supply(
    read: Read, job: Job, readers: Readers, supply_of: Callable[[Read], Supply | None]
) -> Supply:
    """Return what supplies the input that an adapter is to a row.

    Args:
        read: the input; it has factors.
        job: the row; its base is read where the adapter says what the weight is.
        readers: open weight files.
        supply_of: supplies stored tensors.
    """
    factors = read.lora
    if factors is None:
        raise DataError(f"`{read.name}` of `{read.source}` is not a low-rank delta")
    if factors.packed:
        from mergekit_lite.engine.packed import unpacked  # few merges have patches

        return unpacked(readers.packed(read.source, factors.packed), read.source, readers)
    if factors.rows:
        own = readers.tensor(read.source, factors.b)
        rows = dict(zip(factors.rows, own, strict=True))
        return WithRows(_entries(supply_of(_base(job))), rows, job.shape[1])
    if factors.stack:
        return fused_experts(read, factors, job, readers)
    if factors.diagonal:
        return _truncated(read, factors, job, _entries(supply_of(_base(job))), readers)
    delta = _low_rank(read, factors, readers)
    if factors.is_delta:
        return delta
    under = type(read)(read.source, factors.under) if factors.under else _base(job)
    magnitude = readers.tensor(read.source, factors.magnitude) if factors.magnitude else None
    return Adapted(
        _entries(supply_of(under)),
        delta,
        (job.shape[0], prod(job.shape[1:])),
        None if magnitude is None else magnitude.reshape(-1),
        by_column=factors.transpose,
    )


@dataclass
class Joined(LowRank):
    """Deltas of several adapters with their weights, added up in one product.

    Attributes:
        squares: sum of the squares of each adapter's delta, without its weight.
        broken: adapters whose factors hold NaN or infinity.
    """

    squares: tuple[float, ...] = ()
    broken: tuple[str, ...] = ()


def joined_supply(read: JoinedRead, readers: Readers) -> Joined:
    """Return the one product that several adapters are to a row."""
    lefts, rights, squares, broken = [], [], [], []
    for part, weight in read.parts:
        left, right, scale = factors_of(part, readers)
        squares.append(sum_of_squares(left, right, scale))
        if not (np.isfinite(left).all() and np.isfinite(right).all()):
            broken.append(part.source)
        lefts.append(left * (np.float32(weight) * scale))
        rights.append(right)
    left, right = np.hstack(lefts), np.vstack(rights)
    return Joined(left, strips(right), np.float32(1), right.shape[1], tuple(squares), tuple(broken))


def sum_of_squares(left: Floats, right: Floats, scale: np.float32) -> float:
    """Return the sum of squares of `scale * left @ right` from the factors alone."""
    tall, wide = left.astype(np.float64), right.astype(np.float64)
    return float(((tall.T @ tall) * (wide @ wide.T)).sum()) * float(scale) ** 2


def factors_of(
    read: Read, readers: Readers, *, stored: bool = True
) -> tuple[Floats, Floats, np.float32]:
    """Return the plain factors of an adapter as matrices, and their scale.

    Args:
        read: the adapter's part in a row.
        readers: open weight files.
        stored: turned as the base's weight is stored; else B (out x rank) and A (rank x in).
    """
    factors = read.lora
    if factors is None or not factors.a:
        raise DataError(f"`{read.name}` of `{read.source}` is not a low-rank delta")
    a = readers.tensor(read.source, factors.a)
    b = readers.tensor(read.source, factors.b)
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    left, right = (a.T, b.T) if factors.transpose and stored else (b, a)
    return left, right, np.float32(factors.scale)


def _base(job: Job) -> Read:
    if job.base is None:
        raise DataError(f"the row of `{job.name}` has no base, which the adapter changes")
    return job.base


def _entries(supply: Supply | None) -> Callable[[int, int], Floats]:
    """Return a function for entries [first, first + count) of a stored tensor, in fp32."""
    if supply is None:
        raise DataError("an adapter changes a tensor that is not there")
    width, dtype = DTYPE_BYTES[supply.dtype], supply.dtype

    def entries(first: int, count: int) -> Floats:
        raw = np.empty(count * width, np.uint8)
        supply.fill(first, count, raw)
        return as_float32(raw, dtype)

    return entries


def _low_rank(read: Read, factors: LoraFactors, readers: Readers) -> LowRank:
    if factors.a:
        return product(*factors_of(read, readers))
    bias = readers.tensor(read.source, factors.b).reshape(1, -1)
    return product(np.ones((1, 1), np.float32), bias, np.float32(factors.scale))


def _truncated(
    read: Read,
    factors: LoraFactors,
    job: Job,
    base: Callable[[int, int], Floats],
    readers: Readers,
) -> Truncated:
    b, a, scale = factors_of(read, readers)
    delta = product(b * readers.tensor(read.source, factors.diagonal), a, scale)
    return Truncated(base, delta, (job.shape[0], job.shape[1]), a.shape[0])
