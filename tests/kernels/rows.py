"""Rows of several tiles for comparing written-out loops with the kernels for any row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.kernels.codec import BF16, F16, F32, F64, WIDTHS
from mergekit_lite.kernels.steps import BAND, CUT, DARE, FAR
from tests.kernels.arrays import AWKWARD, Floats

EVERY = 1 << 40
"""As `until`: no tie lies behind it."""
STARTS = [0, 12_345, (1 << 32) - 5000, (1 << 32) - 8192, (1 << 32) + 1, 7 << 32]
COUNTS = [1, 7, 2048, 8191, 8192, 8193, 20_000]
INF = 0x7F800000


def stored(values: Floats, code: int) -> NDArray[np.uint8]:
    """Return entries as a file holds them; bf16 and fp16 by way of numbers they can hold."""
    if code == BF16:
        kept = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return kept.view(np.uint8)
    dtype = {F16: np.float16, F32: np.float32, F64: np.float64}[code]
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype).view(np.uint8)


def calm(generator: np.random.Generator, n: int) -> Floats:
    """Return small numbers in few steps, so that many differences tie."""
    steps = np.round(generator.normal(0, 6, n)).astype(np.float32)
    return (steps * np.float32(2**-7)).astype(np.float32)


def awkward(generator: np.random.Generator, n: int) -> Floats:
    """Return both zeros, subnormals and others that are finite in every dtype but fp16."""
    return generator.choice(np.array(AWKWARD, np.float32), n)


def large(generator: np.random.Generator, n: int) -> Floats:
    """Return finite numbers near the largest that fp16 holds, whose sums it does not hold."""
    return generator.choice(np.array([60_000, -65_504, 30_000, 1, 0], np.float32), n)


def huge(generator: np.random.Generator, n: int) -> Floats:
    """Return finite numbers near the largest of bf16, whose sums and squares overflow."""
    return generator.choice(np.array([3.3e38, -3.3e38, 1e38, 1e20, 0, 2], np.float32), n)


def any_bits(generator: np.random.Generator, n: int) -> Floats:
    """Return numbers of every exponent, with NaN and infinities among them."""
    return generator.integers(0, 1 << 32, n, np.uint64).astype(np.uint32).view(np.float32)


def rarely_broken(generator: np.random.Generator, n: int) -> Floats:
    """Return calm numbers and very few NaN and infinities."""
    values = calm(generator, n)
    at = generator.integers(0, n, 3)
    values[at] = np.array([np.nan, np.inf, -np.inf], np.float32)
    return values


def differences(generator: np.random.Generator, n: int) -> Floats:
    """Return what a fine-tune in bf16 differs from its base by: many entries, few magnitudes."""
    base = generator.normal(0, 0.02, n).astype(np.float32)
    tuned = (base + 3e-4 * generator.standard_t(4, n)).astype(np.float32)
    kept = [x.view(np.uint32) & np.uint32(0xFFFF0000) for x in (tuned, base)]
    return kept[0].view(np.float32) - kept[1].view(np.float32)


DATA = {f.__name__: f for f in (calm, awkward, large, huge, any_bits, rarely_broken)}


@dataclass
class Inputs:
    """Inputs of a row as they lie in a worker's memory, with what its loops write.

    Attributes:
        first, count: the tile's place in its tensor.
    """

    raw: NDArray[np.uint8]
    at: NDArray[np.int64]
    codes: NDArray[np.int64]
    is_delta: NDArray[np.int64]
    first: int
    count: int

    def later(self, done: int) -> NDArray[np.int64]:
        """Return where the inputs of entry `done` lie."""
        widths = [WIDTHS[code] if code >= 0 else 0 for code in self.codes.tolist()]
        return self.at + np.array(widths, np.int64) * done


def inputs(
    generator: np.random.Generator, data: str, codes: Sequence[int], deltas: Sequence[bool]
) -> Inputs:
    """Return a tile somewhere in a tensor, with gaps between its inputs."""
    first, count = int(generator.choice(STARTS)), int(generator.choice(COUNTS))
    parts, at, end = [], [], 0
    for code in codes:
        at.append(end)
        if code >= 0:
            gap = np.full(64 + 8, 0x5A, np.uint8)
            parts += [stored(DATA[data](generator, count), code), gap]
            parts[-2] = np.concatenate([parts[-2], np.full(-len(parts[-2]) % 8, 0x5A, np.uint8)])
            end += len(parts[-2]) + len(gap)
    raw = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    numbers = np.array(codes, np.int64)
    is_delta = np.array([0, *deltas], np.int64)
    return Inputs(raw, np.array(at, np.int64), numbers, is_delta, first, count)


def place(generator: np.random.Generator, first: int, count: int) -> int:
    """Return a flat index for the last tie of a cut: inside the tile, at an end, or elsewhere."""
    inside = first + int(generator.integers(0, count + 1))
    return int(generator.choice([inside, inside, 0, first, first + count, first + 8192, EVERY]))


def numbers(
    generator: np.random.Generator, rows: Sequence[Sequence[int]], tile: Inputs
) -> tuple[Floats, NDArray[np.int64]]:
    """Return `floats` and `ints` for the transforms of every expert."""
    depth = max(map(len, rows), default=0)
    floats = np.ones((len(rows), depth), np.float32)
    ints = np.zeros((len(rows), depth, 6), np.int64)
    # Thresholds that calm data ties with, 0, infinity, and anything else.
    steps = (np.arange(1, 20, dtype=np.float32) * np.float32(2**-7)).view(np.uint32)
    for e, row in enumerate(rows):
        for t, step in enumerate(row):
            low, high = sorted(map(int, generator.choice(steps, 2)))
            if generator.random() < 0.2:
                low = int(generator.choice([0, 1, INF, 0x3F800000]))
            until = [place(generator, tile.first, tile.count) for _ in range(2)]
            if step == CUT:
                ints[e, t, :2] = low, until[0]
            elif step == BAND:
                ints[e, t, :4] = high, until[0], low, until[1]
            elif step == FAR:
                ends = generator.choice(steps, 2).view(np.float32) * [generator.choice([-1, 0]), 1]
                ints[e, t, :2] = ends.astype(np.float32).view(np.uint32)
            elif step == DARE:
                key = generator.integers(0, 1 << 32, 2)
                keep = generator.choice([0, 1, 1 << 30, 0x80000001, 0xFFFFFFFF])
                ints[e, t, :3] = *key, keep
                floats[e, t] = generator.choice([1.0, 1.7, 2.5])
    return floats, ints
