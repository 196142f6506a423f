"""Ranks and sums over differences, against sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.compress.survey import Survey, largest, reach


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    share=st.floats(0, 1),
    steps=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_a_survey_is_a_sort(sizes: list[int], share: float, steps: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Few different magnitudes, so that many are equal.
    parts = [(random.integers(-steps, steps + 1, n) / 64).astype(np.float32) for n in sizes]
    every = np.concatenate(parts)
    if not every.size:
        return
    kept = max(int(share * every.size), 1)
    survey = Survey()
    for part in parts:
        survey.look(part)
    survey.choose(kept)
    for part in parts:
        survey.refine(part)
    found = survey.found()
    ranked = np.sort(np.abs(every))[::-1]
    assert np.uint32(found.threshold).view(np.float32) == ranked[kept - 1]
    chosen = ranked[:kept][ranked[:kept] > 0]
    assert found.kept == len(chosen)
    if len(chosen) == kept:
        assert found.ties == (chosen == ranked[kept - 1]).sum()
    counts = [reach(part, found.threshold) for part in parts]
    assert sum(above for above, _ in counts) + found.ties == found.kept
    if every.size > 1:
        assert found.std == pytest.approx(every.astype(np.float64).std(ddof=1), rel=1e-9, abs=1e-12)
    if len(chosen):
        exact = chosen.astype(np.float64)
        assert found.mean_abs == pytest.approx(exact.mean(), rel=1e-12)
        assert found.l2 == pytest.approx(np.sqrt((exact**2).mean()), rel=1e-12)


def test_parts_do_not_matter() -> None:
    values = np.random.default_rng(5).normal(size=10_000).astype(np.float32)
    survey = Survey()
    for part in np.array_split(values, 7):
        survey.look(np.ascontiguousarray(part))
    survey.choose(500)
    for part in np.array_split(values, 7):
        survey.refine(np.ascontiguousarray(part))
    one, other = survey.found(), largest(values, 500)
    assert (one.threshold, one.ties, one.kept) == (other.threshold, other.ties, other.kept)
    assert one.std == pytest.approx(other.std, rel=1e-12)
