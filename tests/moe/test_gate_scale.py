"""How large the rows of a router are, and biases of the choice that rows alone cannot replace."""

from __future__ import annotations

import numpy as np
import pytest

from mergekit_lite.moe.gates._scale import Scale, confident, pooled_gram, scaled
from mergekit_lite.moe.gates.lda import biases, discriminants
from tests.moe.test_ridge import WIDTH, Array, inputs, sums_of


def sure(rows: Array, tokens: Array) -> float:
    logits = tokens @ rows.T
    parts = np.exp(logits - logits.max(1, keepdims=True))
    return float((parts / parts.sum(1, keepdims=True)).max(1).mean())


@pytest.mark.parametrize("wanted", [0.3, 0.6, 0.95])
def test_rows_are_scaled_until_tokens_are_as_sure_as_is_wanted(wanted: float) -> None:
    tokens = np.concatenate(inputs(4, 50))
    rows = np.random.default_rng(1).standard_normal((4, WIDTH))

    found = confident(rows, tokens, wanted)

    assert sure(found, tokens) == pytest.approx(wanted, abs=1e-9)
    factors = found / rows
    np.testing.assert_allclose(factors, factors[0, 0], rtol=1e-12)


def test_alike_rows_stay_as_they_are_and_a_confidence_takes_the_place_of_a_spread() -> None:
    tokens = np.concatenate(inputs(2, 20))
    alike = np.ones((3, WIDTH))
    assert confident(alike, tokens, 0.6) is alike
    assert Scale.wanted(None, None, 1) == Scale(4.0)
    assert Scale.wanted(2.0, None, 1).facts() == {"spread": 2.0}
    assert (Scale.wanted(None, 0.6, 2).sample, Scale.wanted(None, None, 2).sample) == (4096, 0)
    assert Scale.wanted(None, 0.6, 2).facts() == {"confidence": 0.6}


def discriminant_scores(domains: list[Array], tokens: Array) -> Array:
    """Return log densities of equal Gaussians about the means, as a textbook writes them."""
    means = [x.mean(0) for x in domains]
    within = sum(np.cov(x.T, bias=True) for x in domains) / len(domains)
    within = within + 0.01 * np.trace(within) / WIDTH * np.eye(WIDTH)
    inverse = np.linalg.inv(within)
    away = [tokens - m for m in means]
    return np.stack([-0.5 * np.einsum("td,de,te->t", a, inverse, a) for a in away], axis=1)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_small_rows_with_biases_choose_as_the_discriminants_do(sigmoid: bool) -> None:
    domains = inputs(4, 400)
    tokens = np.concatenate(inputs(4, 400, seed=0))
    sums = sums_of(domains)
    found = discriminants(sums, 0.01)
    wanted = discriminant_scores(domains, tokens).argmax(1)
    np.testing.assert_array_equal(
        ((tokens - found.centre) @ found.rows.T + found.scores).argmax(1), wanted
    )

    rows = scaled(found.rows, pooled_gram(sums.gram, sums.count), 0.25)
    size = float(np.linalg.norm(rows) / np.linalg.norm(found.rows))
    added = biases(rows, found, size, sigmoid=sigmoid)
    logits = tokens @ rows.T
    parts = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = 1 / (1 + np.exp(-logits)) if sigmoid else parts

    assert np.mean((scores + added).argmax(1) == wanted) > 0.97
    labels = np.repeat(np.arange(4), 400)
    assert np.mean((scores + added).argmax(1) == labels) > 0.95
    # Without the bias it is no better than chance.
    assert np.mean(logits.argmax(1) == labels) < 0.5
