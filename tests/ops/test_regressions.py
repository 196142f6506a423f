"""Merging as least squares: WUDI and ACE against their formulas written out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from mergekit_lite.ops import merge_tensors

SHAPES = [(12, 20), (20, 12), (9, 60)]  # the last: fewer rows in all tasks than columns


def tasks(rows: int, columns: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(rows, columns, generator=generator) for _ in range(3)]


def near(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    error = float((got.double() - expected.double()).norm() / expected.double().norm())
    assert error < tolerance


def loss(merged: torch.Tensor, inputs: Sequence[torch.Tensor]) -> float:
    terms = [
        ((merged.double() - t.double()) @ t.double().T).norm() ** 2 / t.double().norm() ** 2
        for t in inputs
    ]
    return float(sum(terms))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_closed_form_is_the_minimum(shape: tuple[int, int]) -> None:
    inputs = tasks(*shape)
    grams = [t.double().T @ t.double() / t.double().norm() ** 2 for t in inputs]
    total = sum(t.double() @ g for t, g in zip(inputs, grams, strict=True))
    expected = total @ torch.linalg.pinv(sum(grams), rtol=1e-10)
    near(merge_tensors("wudi", inputs, closed_form=True, ridge=0.0), expected)
    near(merge_tensors("wudi", inputs, closed_form=True, ridge=1e-10), expected)
    best = loss(expected, inputs)
    for nudge in tasks(*shape):
        assert loss(expected + 1e-3 * nudge, inputs) >= best


@pytest.mark.parametrize("shape", SHAPES)
def test_adam_goes_the_way_of_the_library(shape: tuple[int, int]) -> None:
    inputs = tasks(*shape)
    rms = float(torch.stack(inputs).square().mean().sqrt())
    merged = torch.nn.Parameter(sum(t.double() / rms for t in inputs))
    optimiser = torch.optim.Adam([merged], lr=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        terms = [
            ((merged - t.double() / rms) @ t.double().T).norm() ** 2 / t.double().norm() ** 2
            for t in inputs
        ]
        sum(terms).backward()
        optimiser.step()
    near(merge_tensors("wudi", inputs, iters=40, lr_rel=0.05), merged.detach() * rms, 1e-4)


def test_steps_lower_the_loss_whatever_the_size_of_the_deltas() -> None:
    shares = []
    for scale in (1.0, 1e-4):
        inputs = tasks(12, 20, scale)
        start = sum(inputs)
        merged = merge_tensors("wudi", inputs)
        shares.append(loss(merged, inputs) / loss(start, inputs))
    assert shares[0] < 0.9
    assert shares[0] == pytest.approx(shares[1], rel=1e-3)


def published(
    inputs: Sequence[torch.Tensor], eps: float, k_frac: float, unlike: bool
) -> torch.Tensor:
    columns = inputs[0].shape[1]
    eye = torch.eye(columns).double()
    numerator = covariance = 0
    plain, centred = [], [(t - t.mean(0)).double() for t in inputs]
    for c in centred:
        own = c.T @ c
        scale = own.trace() if unlike else 1.0
        plain.append(own / scale)
        numerator = numerator + c @ (own / scale + eps / scale * eye)
        covariance = covariance + own / scale + eps / scale * eye
    shared = sum(plain).mean(0, keepdim=True)
    if unlike:
        shared = shared / torch.stack([t.double().square().sum() for t in inputs]).mean()
    result = numerator @ torch.linalg.inv(covariance + shared)
    if unlike:
        middle = covariance / len(inputs)
        rest = sum(c @ (own - middle) for c, own in zip(centred, plain, strict=True))
        u, s, v = torch.linalg.svd(rest + result, full_matrices=False)
        kept = int(len(s) * k_frac)
        result = result + s[:kept].mean() * (u[:, :kept] @ v[:kept])
    return result


@pytest.mark.parametrize("unlike", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_ace_is_its_formula(shape: tuple[int, int], unlike: bool) -> None:
    inputs = tasks(*shape)
    expected = published(inputs, 0.01, 0.3, unlike)
    got = merge_tensors("ace", inputs, eps=0.01, gamma=0.0 if unlike else 1e9)
    near(got, expected, 1e-4)


def test_ace_tells_unlike_tasks_by_their_size() -> None:
    small, large, _ = tasks(10, 14, 0.02)
    inputs = [small, large * 500]
    assert torch.equal(merge_tensors("ace", inputs), merge_tensors("ace", inputs, gamma=0.0))
    assert not torch.equal(merge_tensors("ace", inputs), merge_tensors("ace", inputs, gamma=1e9))
    alike = tasks(10, 14, 0.02)
    assert torch.equal(merge_tensors("ace", alike), merge_tensors("ace", alike, gamma=1e9))


@pytest.mark.parametrize(
    ("op", "params"), [("wudi", {}), ("wudi", {"closed_form": True}), ("ace", {})]
)
def test_an_expert_that_changes_nothing_adds_nothing(op: str, params: dict[str, bool]) -> None:
    inputs = tasks(12, 20)
    beside = [inputs[0], torch.zeros(12, 20), *inputs[1:]]
    assert torch.equal(merge_tensors(op, inputs, **params), merge_tensors(op, beside, **params))


@pytest.mark.parametrize("op", ["wudi", "ace"])
def test_embeddings_get_the_mean_unless_asked(op: str) -> None:
    inputs = tasks(12, 9)
    near(merge_tensors(op, inputs, role="embedding"), sum(inputs) / 3, 1e-6)
    asked = merge_tensors(op, inputs, role="embedding", embeddings=True)
    assert torch.equal(asked, merge_tensors(op, inputs))
