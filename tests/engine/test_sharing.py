"""The fewest entries that have a share of a sum of squares, against whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mergekit_lite.engine import sharing
from mergekit_lite.engine.ranking import HIGH, LOW, Ranking
from mergekit_lite.engine.sharing import Counts
from mergekit_lite.ops._statistics import whole_square
from tests.kernels.rows import DATA


def numbers(data: str) -> NDArray[np.uint32]:
    values = DATA[data](np.random.default_rng(5), 3000)
    finite: NDArray[np.uint32] = values[np.isfinite(values)].view(np.uint32) & np.uint32(0x7FFFFFFF)
    return finite


@pytest.mark.parametrize("held", [1 << 24, 1000, 7])
@pytest.mark.parametrize("data", DATA)
def test_sums_of_squares_are_exact(monkeypatch: pytest.MonkeyPatch, data: str, held: int) -> None:
    monkeypatch.setattr(sharing, "MOST_HELD", held)
    bits = numbers(data)
    counts = Counts(Ranking([len(bits)], len(bits), share=0.5))
    for first in range(0, len(bits), 1234):
        counts.add(bits[first : first + 1234])
    counts.end()
    total = 0
    for digit in np.flatnonzero(counts.bins[0]).tolist():
        squares = (int(counts.bins[HIGH][digit]) << 24) + int(counts.bins[LOW][digit])
        total += squares << 2 * max((digit >> 8) - 1, 0)
    assert total == sum(map(whole_square, bits.tolist()))
    assert counts.bins[0].sum() == len(bits)
