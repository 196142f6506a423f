"""Combines on a block against the torch ops, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.kernels.combine import (
    MAX,
    MEAN,
    SUM,
    active_mean,
    claimed,
    clipped,
    largest,
    masked,
    scaled_mean,
    vote,
    weighted_sum,
)
from mergekit_lite.ops import get
from mergekit_lite.ops._arithmetic import negligible, total_weight
from mergekit_lite.ops._place import Sums
from mergekit_lite.ops.combine.ramplus import factors
from tests.kernels.arrays import AWKWARD, Floats, same

WEIGHTS = st.one_of(st.sampled_from([1.0, 0.0, -1.0, 0.5, 0.1, 1e-30]), st.floats(-4, 4, width=32))
CALM = settings(max_examples=100)


@st.composite
def experts(draw: st.DrawFn) -> tuple[Floats, list[float]]:
    """Inputs of 1 to 5 experts, with cancelling entries, and a weight for each."""
    count, n = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    entry = st.one_of(st.sampled_from(AWKWARD), st.floats(-2, 2, width=32))
    values = draw(st.lists(entry, min_size=count * n, max_size=count * n))
    weights = draw(st.lists(WEIGHTS, min_size=count, max_size=count))
    return np.array(values, np.float32).reshape(count, n), weights


def by_op(op: str, x: Floats, weights: list[float], **params: object) -> torch.Tensor:
    spec = get(op)
    inputs = [torch.from_numpy(row.copy()) for row in x]
    return spec.function(inputs, weights=weights, **spec.arguments({**spec.defaults(), **params}))


@CALM
@given(experts(), st.booleans())
def test_weighted_sum_is_linear(given_: tuple[Floats, list[float]], normalize: bool) -> None:
    x, weights = given_
    if normalize and negligible(weights):
        return
    divisor = np.float32(total_weight(weights) if normalize else 0)
    out = np.full(x.shape[1], 9, np.float32)
    weighted_sum(x, len(x), x.shape[1], np.array(weights, np.float32), divisor, out)
    assert same(out, by_op("linear", x, weights, normalize=normalize))


def ratios(sums: Sums, experts: int) -> Floats:
    """Return the scales that follow from counts of changes."""
    return np.array(factors(sums, experts, 0.3, 5.0), np.float32)


@pytest.mark.parametrize("elect", ["mass", "count"])
@pytest.mark.parametrize(("agg", "aggregate"), [("mean", MEAN), ("sum", SUM), ("max", MAX)])
@pytest.mark.parametrize("zero_sign", ["plus", "none"])
@pytest.mark.parametrize("divisor", ["absolute", "signed"])
@CALM
@given(experts())
def test_vote_is_sign_consensus(
    elect: str,
    agg: str,
    aggregate: int,
    zero_sign: str,
    divisor: str,
    given_: tuple[Floats, list[float]],
) -> None:
    x, weights = given_
    n = x.shape[1]
    out, ballot, mass = (np.full(n, 9, np.float32) for _ in range(3))
    vote(
        x, len(x), n, np.array(weights, np.float32), elect == "count", aggregate,
        zero_sign == "plus", divisor == "signed", out, ballot, mass,
    )  # fmt: skip
    how = {"elect": elect, "agg": agg, "zero_sign": zero_sign, "divisor": divisor}
    wanted = by_op("sign_consensus", x, weights, **how)
    # Which zero a vote without a winner gives is of no account: a zero delta leaves the base.
    assert same(out + np.float32(0), wanted + 0.0)


@CALM
@given(experts(), st.sampled_from([0.0, 0.5, 1e-5, 3.0]), st.integers(1, 3))
def test_the_other_combines_are_their_ops(
    given_: tuple[Floats, list[float]], limit: float, least: int
) -> None:
    x, weights = given_
    sums = Sums(absolute=tuple(float(3 * i % 7) for i in range(2 * len(x))))
    experts_, n, given_weights = len(x), x.shape[1], np.array(weights, np.float32)
    out, scratch = np.full(n, 9, np.float32), np.full(n, 9, np.float32)
    one = [torch.from_numpy(row.copy()) for row in x]
    largest(x, experts_, n, given_weights, out)
    assert same(out, by_op("magmax", x, weights))
    active_mean(x, experts_, n, np.float32(limit), out, scratch)
    assert same(out, get("ram").function(one, epsilon=limit))
    scaled_mean(x, experts_, n, np.float32(limit), ratios(sums, experts_), out, scratch)
    params = {"epsilon": limit, "r": 0.3, "alpha": 5.0, "scope": "model"}
    assert same(out, get("ramplus").function(one, sums=sums, **params))
    limits = np.array([limit, 0.3, 0.0, 1.5, 9.0][:experts_], np.float32)
    claimed(x, experts_, n, given_weights, limits, least, out, scratch)
    each = dict(zip("abcde", map(float, limits), strict=False))
    params = {"names": "abcde"[:experts_], "mask_lambda": each, "at_least": least}
    assert same(out, get("consensus").function(one, weights=weights, **params))
    out[:] = merged = x[-1] / 2
    masked(x, experts_, n, limits, least, out, scratch)
    given_merged = torch.from_numpy(merged.copy())
    assert same(out, get("consensus_mask").function(given_merged, deltas=one, **params))
    clipped(x, n, np.float32(limit), out)
    assert same(out, get("nearswap").function(one[:1], t=limit))


def test_products_are_rounded_before_they_are_added() -> None:
    """A fused multiply-add would leave the rounding error of the product."""
    a = np.float32(1 + 2**-12)
    x = np.array([[-(a * a)], [a]], np.float32)
    out = np.empty(1, np.float32)
    weighted_sum(x, 2, 1, np.array([1, a], np.float32), np.float32(0), out)
    assert out[0] == 0.0


def test_a_mean_over_weights_that_cancel_is_zero() -> None:
    """Both experts agree, and weigh nothing together: there is no mean, unless signs are left out.

    The shares of the first entry are 2 and 2; those of the second 2 and -2, a vote that plus wins.
    """
    x = np.array([[2.0, 2.0], [-2.0, 2.0]], np.float32)
    out, ballot, mass = (np.empty(2, np.float32) for _ in range(3))
    weights = np.array([1, -1], np.float32)
    vote(x, 2, 2, weights, False, MEAN, True, True, out, ballot, mass)
    assert out.tolist() == [0.0, 2.0]
    vote(x, 2, 2, weights, False, MEAN, True, False, out, ballot, mass)
    assert out.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("aggregate", [MEAN, SUM, MAX])
def test_a_vote_between_infinities_elects_nobody(aggregate: int) -> None:
    x = np.array([[3e38, 1.0], [3e38, 2.0]], np.float32)
    out, ballot, mass = (np.empty(2, np.float32) for _ in range(3))
    weights = np.array([-2, 2], np.float32)
    vote(x, 2, 2, weights, False, aggregate, True, True, out, ballot, mass)
    name = {MEAN: "mean", SUM: "sum", MAX: "max"}[aggregate]
    assert same(out, by_op("sign_consensus", x, [-2.0, 2.0], agg=name, divisor="signed"))
    assert out[0] == 0
