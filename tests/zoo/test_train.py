"""What decides a training run before any weight is touched."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mergekit_lite.zoo.catalog import Training
from mergekit_lite.zoo.train import rate_at, windows

SETTINGS = Training(steps=20, batch=2, window=4, rate=1.0, seed=3)


def test_every_window_is_used_before_one_comes_again() -> None:
    batches = list(windows(list(range(43)), SETTINGS))
    assert len(batches) == 20
    firsts = [row[0] for batch in batches[:5] for row in batch.tolist()]
    assert sorted(firsts) == list(range(0, 40, 4))
    assert batches[0].shape == (2, 4)
    assert batches[0][0].diff().tolist() == [1, 1, 1]


def test_the_order_depends_on_the_seed_alone() -> None:
    first, again = ([b.tolist() for b in windows(list(range(400)), SETTINGS)] for _ in range(2))
    other = [b.tolist() for b in windows(list(range(400)), Training(20, 2, 4, rate=1.0, seed=4))]
    assert first == again
    assert first != other


def test_the_rate_rises_for_a_tenth_and_then_falls() -> None:
    rates = [rate_at(step, SETTINGS) for step in range(20)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 18 / 19])
    assert rates[-1] == pytest.approx(1 / 19)
    assert all(later < earlier for earlier, later in pairwise(rates[1:]))
