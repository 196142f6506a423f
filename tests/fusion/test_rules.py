"""The formulas of logit fusion, by hand and by their identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.fusion import fused_log_probabilities, matching_alpha
from mergekit_lite.fusion.rules import divergence


def scores(seed: int, rows: int = 3, tokens: int = 11) -> torch.Tensor:
    return torch.randn((rows, tokens), generator=torch.Generator().manual_seed(seed)) * 2


def shift(tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    return tuned.log_softmax(-1) - base.log_softmax(-1)


def test_fused_by_hand() -> None:
    # p_large = (1/2, 1/2); tuning took the small model from (1/2, 1/2) to (3/4, 1/4).
    large, tuned, base = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    whole = fused_log_probabilities(large, [shift(tuned, base)], [1.0]).exp()
    assert torch.allclose(whole, torch.tensor([[0.75, 0.25]]))
    # Twice as far: odds of 3 become odds of 9.
    twice = fused_log_probabilities(large, [shift(tuned, base)], [2.0]).exp()
    assert torch.allclose(twice, torch.tensor([[0.9, 0.1]]))


@given(st.integers(0, 1000), st.floats(0, 3))
def test_identities(seed: int, alpha: float) -> None:
    """Shows V16."""
    large, tuned, base = scores(seed), scores(seed + 1), scores(seed + 2)
    own = large.log_softmax(-1)
    close = {"atol": 1e-5, "rtol": 0.0}
    moved = shift(tuned, base)
    assert torch.allclose(fused_log_probabilities(large, [moved], [0.0]), own, **close)
    same = shift(base, base)
    assert torch.allclose(fused_log_probabilities(large, [same], [alpha]), own, **close)
    # A large model that is the small one becomes the tuned one.
    up = fused_log_probabilities(base, [moved], [1.0])
    assert torch.allclose(up, tuned.log_softmax(-1), **close)
    # Two halves of a shift are the whole of it.
    halves = fused_log_probabilities(large, [moved, moved], [0.5, 0.5])
    assert torch.allclose(halves, fused_log_probabilities(large, [moved], [1.0]), **close)


def test_impossible_tokens_stay_impossible() -> None:
    large = scores(0)
    large[:, 4] = -math.inf
    fused = fused_log_probabilities(large, [shift(scores(1), scores(2))], [1.0])
    assert (fused[:, 4] == -math.inf).all()
    assert torch.allclose(fused.exp().sum(-1), torch.ones(3))
    assert matching_alpha(large, scores(1), scores(2)).isfinite().all()


@given(st.integers(0, 1000))
def test_the_large_model_moves_as_far_as_the_small_one(seed: int) -> None:
    large, base = scores(seed), scores(seed + 1)
    tuned = base + scores(seed + 2) / 2
    alpha = matching_alpha(large, tuned, base, highest=50.0)
    fused = fused_log_probabilities(large, [shift(tuned, base)], [alpha])
    moved = divergence(fused, large.log_softmax(-1))
    wanted = divergence(tuned.log_softmax(-1), base.log_softmax(-1))
    inside = (alpha < 50.0).squeeze(-1)
    assert torch.allclose(moved[inside], wanted[inside], rtol=1e-3, atol=1e-5)


def test_the_strength_in_known_cases() -> None:
    base, tuned = scores(1), scores(2)
    # The large model is the small one: the identity holds at 1.
    assert torch.allclose(matching_alpha(base, tuned, base), torch.ones(3, 1), atol=1e-5)
    assert (matching_alpha(scores(3), base, base) == 0).all()
    # A model that is sure of one token cannot be moved as far: the highest is taken.
    sure = torch.zeros(3, 11)
    sure[:, 0] = 80.0
    assert (matching_alpha(sure, tuned, base, highest=1.5) == 1.5).all()


def test_divergence_by_hand() -> None:
    left, right = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log()
    assert divergence(left, right).item() == pytest.approx(math.log(2))
