"""Ranks and sums over differences, against sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.compress.survey import Survey, largest, reach


@settings(max_examples=80)
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


def test_a_good_guess_spares_the_second_sweep_and_changes_nothing() -> None:
    random = np.random.default_rng(6)
    parts = [random.normal(size=50_000, scale=s).astype(np.float32) for s in (1e-3, 4e-3)]
    guesses = {"good": parts, "too small": [parts[0] / 100], "too great": [parts[0] * 100]}
    wanted = largest(np.concatenate(parts), 5000)
    for kind, sample in guesses.items():
        survey = Survey()
        survey.guess(((2.5, part[:20_000]) for part in sample), 0.05)
        for part in parts:
            survey.look(part)
        assert survey.counts_enough(5000) is (kind != "too great")
        if kind == "too great":
            for part in parts:
                survey.look(part)
        survey.choose(5000)
        assert survey.knows is (kind == "good")
        once = survey.found() if survey.knows else None
        for part in parts:
            survey.refine(part)
        found = survey.found()
        assert (found.threshold, found.ties) == (wanted.threshold, wanted.ties)
        assert found.entries == wanted.entries
        assert found.l2 == pytest.approx(wanted.l2, rel=1e-12)
        if once is not None:
            assert (once.threshold, once.ties, once.std) == (
                found.threshold, found.ties, found.std,
            )  # fmt: skip
            assert np.isnan(once.l2)


@pytest.mark.parametrize("size", [1, 15, 16, 4095, 4096, 4097, 10_000])
def test_squares_are_told_whatever_is_counted(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    survey = Survey()
    survey.guess([(1.0, values)], 0.1)
    before = values.copy()
    assert survey.look(values) == pytest.approx((values.astype(np.float64) ** 2).sum(), rel=1e-12)
    assert np.array_equal(values, before)
