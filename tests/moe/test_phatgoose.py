"""Training of gates on one expert's inputs, and the rows that stock routers take of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergekit_lite.moe.gates.phatgoose import standardised, trained

D = 48


def layer_norm(values: np.ndarray) -> np.ndarray:
    apart = values - values.mean(1, keepdims=True)
    return apart / np.sqrt(np.square(apart).mean(1, keepdims=True) + 1e-12)


def test_stock_routers_choose_the_experts_that_the_paper_s_do() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((6, D)) * 3 + 1
    tokens = random.standard_normal((10_000, D)) * random.uniform(0.2, 3, (10_000, 1)) + 0.7

    paper = layer_norm(tokens) @ layer_norm(vectors).T / np.sqrt(D)
    stock = tokens @ standardised(vectors).T

    best = [np.sort(np.argsort(-scores, axis=1)[:, :2], axis=1) for scores in (paper, stock)]
    np.testing.assert_array_equal(*best)
    # At each token's own temperature.
    np.testing.assert_allclose(stock, paper * tokens.std(1, keepdims=True), atol=1e-9)


def test_training_is_that_of_torch_s_adam_step_by_step() -> None:
    random = np.random.default_rng(2)
    inputs, loud = random.standard_normal((30, D)) + 0.3, random.uniform(0, 2, 30)
    found = trained(inputs, loud, 20, 5e-3)

    g = torch.zeros(D, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.AdamW([g], lr=5e-3, weight_decay=0, eps=1e-12)
    x, weights = torch.from_numpy(inputs), torch.from_numpy(loud / loud.sum())
    for step in range(1, 21):
        optimiser.param_groups[0]["lr"] = 5e-3 * min(1, step / 1.2)
        optimiser.zero_grad()
        (weights * (1 - (x @ g).sigmoid()).square()).sum().backward()
        optimiser.step()
    np.testing.assert_allclose(found, g.detach().numpy(), rtol=1e-9)


@pytest.mark.parametrize("steps", [5, 100])
def test_a_gate_opens_for_the_tokens_that_the_expert_changes(steps: int) -> None:
    random = np.random.default_rng(1)
    wanted = np.eye(D)[3] * 4
    inputs = random.standard_normal((200, D))
    inputs[:100] += wanted
    loud = np.concatenate([np.ones(100), np.full(100, 1e-6)])

    g = trained(inputs, loud, steps, 5e-3)

    opened = 1 / (1 + np.exp(-(inputs @ g)))
    assert opened[:100].mean() > opened[100:].mean() > 0
    assert g.argmax() == 3
