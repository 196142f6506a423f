"""Ridge gates on synthetic router inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergekit_lite.moe.gates._equations import Equations
from mergekit_lite.moe.gates._measure import LayerSums
from mergekit_lite.moe.gates._scale import pooled_gram, scaled, spread, usual_spread
from mergekit_lite.moe.gates._sidecar import read_equations, write_equations
from mergekit_lite.moe.gates.arrow import prototype
from mergekit_lite.moe.gates.router_input_mean import mean_rows

Array = NDArray[np.float64]
WIDTH = 24


def inputs(domains: int, tokens: int, seed: int = 0) -> list[Array]:
    """Return inputs of domains: a large common mean, a domain's own direction, and noise.

    The noise is strong along a few directions, the same for all domains.
    """
    random = np.random.default_rng(seed)
    common = 8 * random.standard_normal(WIDTH)
    own = 2.2 * np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0][:domains]
    loud = 4 * np.linalg.qr(random.standard_normal((WIDTH, 6)))[0].T
    found = []
    for number, direction in enumerate(own):
        noise = np.random.default_rng((seed, number))
        even = 0.4 * noise.standard_normal((tokens, WIDTH))
        found.append(common + direction + even + noise.standard_normal((tokens, 6)) @ loud)
    return found


def sums_of(domains: list[Array]) -> LayerSums:
    return LayerSums(
        np.stack([x.T @ x for x in domains]),
        np.stack([x.sum(0) for x in domains]),
        np.stack([(x / np.linalg.norm(x, axis=1, keepdims=True)).sum(0) for x in domains]),
        np.array([float(len(x)) for x in domains]),
    )


def accuracy(rows: Array, domains: list[Array]) -> float:
    return float(np.mean([np.mean((x @ rows.T).argmax(1) == i) for i, x in enumerate(domains)]))


def test_ridge_sees_past_a_large_common_mean_where_mean_rows_do_not() -> None:
    """Shows V8 and F8."""
    fitted, fresh = inputs(4, 400), inputs(4, 400)
    fresh = [x[200:] for x in fresh]
    sums = sums_of([x[:200] for x in fitted])

    rows = Equations.of(sums, range(4), balanced=True).rows(0.01, normalize=False)

    assert accuracy(rows, fresh) >= 0.95
    assert accuracy(mean_rows(sums.unit), fresh) < 0.6


def test_rows_are_those_of_the_regression_on_the_tokens_themselves() -> None:
    domains = [x[: 30 + 40 * i] for i, x in enumerate(inputs(3, 200))]
    sums = sums_of(domains)

    rows = Equations.of(sums, range(3), balanced=False).rows(0.5, normalize=False)

    x = np.concatenate(domains)
    y = np.concatenate([np.eye(3)[[i] * len(d)] for i, d in enumerate(domains)])
    damping = np.sqrt(0.5 * np.square(x).sum() / WIDTH)
    stacked = np.concatenate([x, damping * np.eye(WIDTH)])
    wanted = np.linalg.lstsq(stacked, np.concatenate([y, np.zeros((WIDTH, 3))]), rcond=None)[0].T
    np.testing.assert_allclose(rows, wanted, rtol=1e-8)
    unit = Equations.of(sums, range(3), balanced=False).rows(0.5, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1)
    np.testing.assert_allclose(unit, rows / np.linalg.norm(rows, axis=1, keepdims=True))


def test_balanced_topics_count_alike_however_many_tokens_they_have() -> None:
    few, many = inputs(2, 60)
    once = Equations.of(sums_of([few, many]), range(2), balanced=True)
    often = Equations.of(sums_of([few, np.tile(many, (9, 1))]), range(2), balanced=True)

    np.testing.assert_allclose(
        once.rows(0.01, normalize=False), often.rows(0.01, normalize=False), rtol=1e-7
    )


@pytest.mark.parametrize("balanced", [True, False])
def test_an_expert_that_is_added_later_gives_the_rows_of_all_at_once(
    tmp_path: Path, balanced: bool
) -> None:
    """Shows V8."""
    domains = inputs(4, 300)
    batch = Equations.of(sums_of(domains), range(4), balanced=balanced)

    first = Equations.of(sums_of(domains[:3]), range(3), balanced=balanced)
    write_equations(tmp_path, 7, first)
    more = Equations.of(sums_of(domains[3:]), [0], balanced=balanced)
    found = read_equations(tmp_path, 7).extended(more)

    np.testing.assert_allclose(found.counts, batch.counts)
    rows, wanted = (e.rows(0.01, normalize=False) for e in (found, batch))
    np.testing.assert_allclose(rows, wanted, atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.pooled, batch.pooled, rtol=1e-5)


def test_topics_of_one_expert_make_one_row() -> None:
    one, two, three = inputs(3, 50)
    apart = Equations.of(sums_of([one, two, three]), [0, 1, 0], balanced=False)
    joined = Equations.of(sums_of([np.concatenate([one, three]), two]), [0, 1], balanced=False)

    np.testing.assert_allclose(
        apart.rows(0.01, normalize=False), joined.rows(0.01, normalize=False), rtol=1e-8
    )


@given(st.floats(0.1, 8), st.floats(0.2, 5))
def test_rows_are_scaled_to_the_spread_that_is_wanted_and_temperature_divides_it(
    wanted: float, temperature: float
) -> None:
    """Shows 4.8."""
    domains = inputs(3, 40)
    sums = sums_of(domains)
    pooled = pooled_gram(sums.gram, sums.count)
    rows = scaled(mean_rows(sums.unit), pooled, wanted)

    logits = np.concatenate(domains) @ rows.T
    assert np.std(logits - logits.mean(1, keepdims=True)) == pytest.approx(wanted, rel=1e-6)
    assert spread(rows / temperature, pooled) == pytest.approx(wanted / temperature, rel=1e-6)
    np.testing.assert_allclose(
        np.concatenate(domains) @ (rows / temperature).T, logits / temperature, rtol=1e-9
    )


def test_rows_that_tell_nothing_apart_stay_as_they_are() -> None:
    rows = np.ones((3, WIDTH))
    assert scaled(rows, np.eye(WIDTH), 1.0) is rows
    assert (usual_spread(1), usual_spread(2), usual_spread(3)) == (4.0, 1.0, 1.0)


def test_the_prototype_of_a_change_is_its_first_right_singular_vector() -> None:
    random = np.random.default_rng(3)
    left, right = (np.linalg.qr(random.standard_normal((n, 3)))[0] for n in (40, WIDTH))
    change = left @ np.diag([9.0, 2.0, 1.0]) @ right.T

    found = prototype(change)

    assert abs(found @ right[:, 0]) == pytest.approx(1, abs=1e-9)
    assert prototype(change, 1) @ found != pytest.approx(1, abs=1e-9)
    assert not prototype(np.zeros((4, WIDTH))).any()
