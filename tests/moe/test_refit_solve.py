"""V17b: one router for several, on inputs whose answer is known or can be checked."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mergekit_lite.moe.refit.solve import Domain, harc, regmean, start_of

Array = NDArray[np.float64]
EXPERTS, HIDDEN, TOKENS, CHOSEN = 16, 24, 600, 4


def domains(seed: int, *, apart: float = 0.6, count: int = 2) -> list[Domain]:
    """Return routers that were tuned apart from one, each with texts of its own direction."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(EXPERTS, HIDDEN)) / 2
    found = []
    for _ in range(count):
        mixed = rng.normal(size=(HIDDEN, HIDDEN)) * np.exp(-np.arange(HIDDEN) / 6)
        inputs = rng.normal(size=(TOKENS, HIDDEN)) @ mixed.T + 4 * rng.normal(size=HIDDEN)
        inputs /= np.sqrt((inputs**2).mean(1, keepdims=True))
        rows = common + apart / 2 * rng.normal(size=common.shape)
        found.append(Domain(inputs.astype(np.float32), rows))
    return found


def probabilities(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def cost(rows: Array, found: list[Domain], *, sigmoid: bool) -> float:
    """Return what is to be least, token by token with the matrix H written out."""
    total = 0.0
    for one in found:
        x = one.inputs.astype(np.float64)
        logits, moved = x @ one.rows.T, x @ (rows - one.rows).T
        scores = 1 / (1 + np.exp(-logits)) if sigmoid else probabilities(logits)
        for p, z in zip(scores, moved, strict=True):
            h = np.diag(p * (1 - p)) if sigmoid else np.diag(p) - np.outer(p, p)
            total += z @ h @ z / len(x)
    return float(total)


def overlap(rows: Array, found: list[Domain]) -> float:
    shared = []
    for one in found:
        left, right = (
            np.argsort(-(one.inputs @ matrix.T), axis=1)[:, :CHOSEN] for matrix in (rows, one.rows)
        )
        shared.append((left[:, :, None] == right[:, None, :]).any(2).mean())
    return float(np.mean(shared))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_router_and_equal_routers_stay_as_they_are(sigmoid: bool) -> None:
    (one,) = domains(0, count=1)
    for parents in ([one], [one, Domain(domains(1)[0].inputs, one.rows)]):
        rows, steps = harc(parents, shrink=0.9, iterations=50, sigmoid=sigmoid)
        assert steps == 0
        assert np.array_equal(rows, one.rows)
        np.testing.assert_allclose(regmean(parents, shrink=0.9), one.rows, rtol=1e-12)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_no_step_in_any_direction_lowers_the_cost(sigmoid: bool) -> None:
    found = domains(2, apart=0.3)
    rows, steps = harc(found, shrink=1.0, iterations=5000, sigmoid=sigmoid)
    assert steps < 5000
    least = cost(rows, found, sigmoid=sigmoid)
    assert least < cost(start_of(found), found, sigmoid=sigmoid)
    rng = np.random.default_rng(3)
    for _ in range(3):
        direction = rng.normal(size=rows.shape)
        ahead, behind = (
            cost(rows + step * direction, found, sigmoid=sigmoid) for step in (1e-4, -1e-4)
        )
        assert abs(ahead - behind) < 1e-6 * least  # the gradient is zero
        assert ahead + behind > 2 * least


def test_the_mean_row_is_that_of_the_start() -> None:
    found = domains(4)
    rows, _ = harc(found, shrink=0.9, iterations=500, sigmoid=False)
    np.testing.assert_allclose(rows.mean(0), start_of(found).mean(0), atol=1e-12)


def test_a_regression_by_least_squares_is_the_same() -> None:
    found = domains(5)
    inputs = np.concatenate([one.inputs.astype(np.float64) for one in found])
    logits = np.concatenate([one.inputs @ one.rows.T for one in found])
    wanted = np.linalg.lstsq(inputs, logits, rcond=None)[0].T
    np.testing.assert_allclose(regmean(found, shrink=1.0), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_choices_are_kept_better_than_by_regression_and_that_better_than_by_means(
    seed: int,
) -> None:
    found = domains(10 + seed)
    fitted, _ = harc(found, shrink=1.0, iterations=2000, sigmoid=False)
    ways = [fitted, regmean(found, shrink=1.0), start_of(found)]
    kept = [overlap(rows, found) for rows in ways]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] - kept[2] > 0.05
