"""Exponential and logarithm: their bits in a kernel and in torch, and how exact they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.kernels.elementary import exponential, logarithm
from mergekit_lite.ops._elementary import exponential_, logarithm_

POWERS = st.one_of(
    st.floats(-800, 0), st.floats(-1, 0), st.sampled_from([0.0, -0.0, -708.0, -709.0, -1e300])
)
POSITIVE = st.one_of(
    st.floats(1e-8, 1e8), st.floats(0.99, 1.01), st.sampled_from([1.0, 0.5, 2.0, 0.5**0.5, 3e-308])
)


def units(got: float, wanted: float) -> float:
    """Return by how many units of its last digit a number is off."""
    return abs(got - wanted) / math.ulp(wanted)


@settings(max_examples=300)
@given(POWERS)
def test_an_exponential_is_within_two_units_and_the_same_in_torch(x: float) -> None:
    got = exponential(x)
    assert units(got, math.exp(max(x, -708.0))) <= 2
    assert exponential_(torch.tensor([x], dtype=torch.float64)).item() == got


@settings(max_examples=300)
@given(POSITIVE)
def test_a_logarithm_is_within_two_units_and_the_same_in_torch(y: float) -> None:
    got = logarithm(y)
    assert units(got, math.log(y)) <= 2
    assert logarithm_(torch.tensor([y], dtype=torch.float64)).item() == got


def test_by_hand() -> None:
    assert exponential(0.0) == 1.0
    assert exponential(-math.log(2)) == pytest.approx(0.5, abs=1e-16)
    assert logarithm(1.0) == 0.0
    assert logarithm(2.0) == math.log(2)


def test_neighbours_do_not_matter() -> None:
    """An entry has the same bits in a vector of any length."""
    x = torch.from_numpy(-np.logspace(-5, 2.8, 1001))
    for f in (exponential_, lambda t: logarithm_(-t)):
        whole = f(x.clone())
        assert torch.equal(torch.cat([f(part.clone()) for part in x.split(7)]), whole)
