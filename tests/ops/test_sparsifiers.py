"""`magnitude`, `breadcrumbs` and `dare`: how many entries, which ones, and edge rules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.ops import get, merge, merge_tensors
from mergekit_lite.ops._chain import Stage
from mergekit_lite.ops.transform.breadcrumbs import band


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(size=st.integers(1, 300), density=st.floats(1e-4, 1.0))
@settings(max_examples=60)
def test_gamma_zero_is_magnitude_pruning_at_every_size(size: int, density: float) -> None:
    delta = (normal(1, size, seed=size) * 4).round()  # many ties
    pruned = merge_tensors("magnitude", [delta], density=density)
    for unit in ("row", "tensor"):
        banded = merge_tensors("breadcrumbs", [delta], density=density, gamma=0.0, unit=unit)
        assert torch.equal(banded, pruned)
    assert int((pruned != 0).sum()) <= max(1, int(density * size))


@given(
    size=st.integers(1, 2000),
    density=st.floats(1e-6, 1.0),
    gamma=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=200)
def test_a_band_keeps_its_share_and_at_least_one(size: int, density: float, gamma: float) -> None:
    top, last = band(density, gamma, size)
    assert 0 <= top < last <= size
    assert last - top == max(1, int(density * size))
    assert top == int(gamma * size) or last == size


def test_each_row_is_a_unit() -> None:
    delta = normal(5, 40)
    kept = merge_tensors("breadcrumbs", [delta], density=0.25, gamma=0.1)
    for row, survivors in zip(delta, kept, strict=True):
        ranked = row.abs().argsort(descending=True)
        assert set(survivors.nonzero().flatten().tolist()) == set(ranked[4:14].tolist())
    one_row = merge_tensors("breadcrumbs", [delta.flatten()], density=0.25, gamma=0.1)
    whole = merge_tensors("breadcrumbs", [delta], density=0.25, gamma=0.1, unit="tensor")
    assert torch.equal(one_row, whole.flatten())


def test_small_and_scalar_tensors_survive() -> None:
    scalar = torch.tensor(3.0)
    assert merge_tensors("breadcrumbs", [scalar], density=0.1, gamma=0.9).item() == 3.0
    assert merge_tensors("magnitude", [scalar], density=1e-6).item() == 3.0
    tiny = merge_tensors("magnitude", [normal(10, 10)], density=5e-4)
    assert int((tiny != 0).sum()) == 1


def test_one_dimension_is_spared_unless_compat_says_otherwise() -> None:
    norm = normal(50)
    assert torch.equal(merge_tensors("ties", [norm]), norm)
    as_the_others = {**get("ties").defaults("mergekit"), "density": 0.2}
    assert int((merge_tensors("ties", [norm], **as_the_others) != 0).sum()) == 10
    # A ranking of the whole model counts every tensor, as the paper does.
    of_model = merge_tensors("ties", [norm], scope="model")
    assert int((of_model != 0).sum()) == 10


def test_parameters_for_a_shape_settle_at_once() -> None:
    spec = get("magnitude")
    once = spec.params_for(spec.defaults(), (8,))
    assert once["density"] == 1.0
    assert spec.params_for(once, (8,)) == once
    assert spec.params_for(spec.defaults(), (8, 8))["density"] == 0.2


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_scales_what_it_keeps(density: float) -> None:
    delta = normal(64, 64)
    dropped = merge_tensors("dare", [delta], density=density, name="w")
    kept = dropped != 0
    assert torch.equal(dropped[kept], (delta * torch.tensor(1 / density))[kept])
    plain = merge_tensors("dare", [delta], density=density, name="w", rescale="none")
    assert torch.equal(plain, torch.where(kept, delta, 0.0))
    level = merge_tensors("dare", [delta], density=density, name="w", rescale="l1")
    assert torch.equal(level != 0, kept)
    torch.testing.assert_close(level.abs().sum(), delta.abs().sum())


def test_dare_of_a_tensor_that_loses_everything_is_zero() -> None:
    for name in (f"t{i}" for i in range(20)):
        result = merge_tensors("dare", [normal(2)], density=0.01, rescale="l1", name=name)
        assert torch.isfinite(result).all()
        if not result.any():
            return
    pytest.fail("no draw dropped both entries in 20 tries at density 0.01")


def test_dare_drops_the_same_entries_however_the_model_is_split() -> None:
    base = torch.zeros(16, 16)
    models = {name: {"a": normal(16, 16), "b": normal(16, 16)} for name in ("first", "second")}
    steps = [Stage("dare", {"density": 0.3}), Stage("task_arithmetic")]
    runs = [
        {name: merge(base, models["first"], steps, name=name, seed=7) for name in order}
        for order in (["x", "y", "z"], ["z", "x", "y"])
    ]
    for name in ("x", "y", "z"):
        assert torch.equal(runs[0][name], runs[1][name])
    assert not torch.equal(runs[0]["x"], runs[0]["y"])


def test_compat_takes_the_numbers_of_the_other_tool() -> None:
    """Trim and election by its rule, re-derived here, over three experts with weights."""
    deltas, weights = [normal(20, 30, seed=s) for s in range(3)], [0.5, 0.3, 0.2]
    params = {**get("ties").defaults("mergekit"), "density": 0.4}
    trimmed = []
    for delta in deltas:
        mask = torch.zeros(600)
        mask[delta.abs().flatten().topk(int(0.4 * 600)).indices] = 1
        trimmed.append(delta * mask.reshape(20, 30))
    shares = torch.stack([w * d for w, d in zip(weights, trimmed, strict=True)])
    majority = torch.where(shares.sum(0) >= 0, 1.0, -1.0)
    agree = shares.sign() == majority
    mass = (torch.tensor(weights)[:, None, None] * agree).sum(0)
    expected = (shares * agree).sum(0) / mass.masked_fill(mass == 0, 1.0)
    torch.testing.assert_close(merge_tensors("ties", deltas, weights=weights, **params), expected)
    summed = {**get("dare_ties").defaults("mergekit")}
    everything = torch.stack([w * d for w, d in zip(weights, deltas, strict=True)])
    majority = torch.where(everything.sum(0) >= 0, 1.0, -1.0)
    expected = (everything * (everything.sign() == majority)).sum(0)
    torch.testing.assert_close(
        merge_tensors("dare_ties", deltas, weights=weights, **summed), expected
    )


def test_standing_out_is_told_by_the_deviation_of_a_sample() -> None:
    generator = torch.Generator().manual_seed(4)
    delta = torch.randn(50, 40, generator=generator) ** 3 + 0.2
    far = (delta - delta.mean()).abs() > 1.28 * delta.std()
    assert torch.equal(merge_tensors("deviation", [delta]), torch.where(far, delta, 0.0))
    assert not merge_tensors("deviation", [torch.full((3, 4), 2.0)]).any()
    assert merge_tensors("deviation", [torch.full((3, 4), 2.0)], factor=None).eq(2.0).all()


def test_ties_by_deviation_takes_no_density_for_1d_tensors() -> None:
    assert len(get("ties").problems({"trim": "std", "density_1d": 0.5})) == 1
    assert len(get("ties").problems({"trim": "norm", "density_1d": 0.5})) == 1
    assert get("ties").problems({"trim": "std", "density_1d": None}) == []
    assert get("ties").problems({"density_1d": 0.5}) == []


@given(share=st.floats(1e-3, 0.999), seed=st.integers(0, 50))
@settings(max_examples=40)
def test_a_share_of_the_norm_takes_the_fewest_entries(share: float, seed: int) -> None:
    delta = (normal(9, 7, seed=seed) * 8).round() / 8  # with ties, and exact squares
    kept = merge_tensors("norm_share", [delta], share=share)
    total = float(delta.double().square().sum())
    has = float(kept.double().square().sum())
    least = float(kept[kept != 0].abs().min())
    assert has >= share * total
    assert has - least * least < share * total
    assert int((delta.abs() > least).sum()) <= int((kept != 0).sum())


def test_nothing_has_no_norm_to_share() -> None:
    zeros = torch.zeros(4, 5)
    assert torch.equal(merge_tensors("norm_share", [zeros], share=0.5), zeros)
