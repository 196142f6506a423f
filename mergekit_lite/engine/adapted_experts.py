"""What an adapter adds to fused experts, or a part of that to one expert by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint import LoraFactors, Share
from mergekit_lite.engine.low_rank import Floats, LowRank, product

if TYPE_CHECKING:
    from mergekit_lite.engine.inputs import Readers
    from mergekit_lite.engine.supplies import Supply
    from mergekit_lite.plan.types import Job, Read


@dataclass
class Stacked:
    """The deltas of a fused tensor's experts, one low-rank product each.

    Attributes:
        part: returns that of an expert.
        each: entries of an expert.
    """

    part: Callable[[int], LowRank]
    each: int
    dtype = "F32"
    is_delta = True

    def offset(self, first: int) -> int:
        return 0

    def fill(self, first: int, count: int, out: NDArray[np.uint8]) -> None:
        done = 0
        while done < count:
            expert, inside = divmod(first + done, self.each)
            n = min(self.each - inside, count - done)
            self.part(expert).fill(inside, n, out[4 * done : 4 * (done + n)])
            done += n


def fused_experts(read: Read, factors: LoraFactors, job: Job, readers: Readers) -> Supply:
    """Return what supplies the delta of an adapter with factors of fused experts.

    Args:
        read: the adapter's part in the row.
        factors: of it.
        job: the row.
        readers: open weight files.
    """
    if factors.shares:
        return _shared(read, factors, job, readers)
    return _stacked(read, factors, job, readers)


def _stacked(read: Read, factors: LoraFactors, job: Job, readers: Readers) -> Supply:
    """Return the deltas of fused experts: A is stacked expert by expert, B rank by rank."""
    a = readers.tensor(read.source, factors.a)
    b = readers.tensor(read.source, factors.b)
    a = a.reshape(factors.stack, -1, a.shape[1])
    b = b.reshape(b.shape[0], -1, factors.stack)
    scale = np.float32(factors.scale)
    if factors.expert < 0:
        pairs = [(a[e], b[:, :, e]) for e in range(factors.stack)]
        parts = [_oriented(*pair, scale, factors.transpose) for pair in pairs]
        return Stacked(parts.__getitem__, prod(job.shape[1:]))
    a, b = a[factors.expert], b[:, :, factors.expert]
    if factors.transpose:
        a, b = b.T, a.T
    rows = slice(factors.first, factors.first + factors.step * job.shape[0], factors.step)
    return product(b[rows], a, scale)


def _shared(read: Read, factors: LoraFactors, job: Job, readers: Readers) -> Supply:
    """Return the deltas of fused experts of which each has factors of its own, or none.

    An expert's factors are set side by side, with zeros where B has none of another's outputs.
    """
    tall, wide = job.shape[1:][::-1] if factors.transpose else job.shape[1:]
    shares: dict[int, list[Share]] = {}
    for share in factors.shares:
        shares.setdefault(share.expert, []).append(share)

    @lru_cache(maxsize=1)
    def part(expert: int) -> LowRank:
        own = shares.get(expert, [])
        same = len({share.scale for share in own}) == 1
        lefts, rights = [np.zeros((tall, 1), np.float32)], [np.zeros((1, wide), np.float32)]
        for share in own:
            b = readers.tensor(read.source, share.b)
            left = np.zeros((tall, b.shape[1]), np.float32)
            outputs = slice(share.first, share.first + share.step * len(b), share.step)
            left[outputs] = b if same else b * np.float32(share.scale)
            lefts.append(left)
            rights.append(readers.tensor(read.source, share.a))
        scale = np.float32(own[0].scale if same else 1)
        some = slice(bool(own), None)
        left, right = np.hstack(lefts[some]), np.vstack(rights[some])
        return _oriented(right, left, scale, factors.transpose)

    return Stacked(part, prod(job.shape[1:]))


def _oriented(a: Floats, b: Floats, scale: np.float32, transpose: bool) -> LowRank:
    left, right = (a.T, b.T) if transpose else (b, a)
    return product(left, right, scale)
