"""RegMean, LOT and Fisher on statistics in hand, against their formulas in fp64."""

from __future__ import annotations

import pytest
import torch

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import get, merge_tensors


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gram(columns: int, samples: int, seed: int) -> torch.Tensor:
    x = normal(samples, columns, seed=seed).double()
    return (x.T @ x / samples).float()


def near(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    error = float((got.double() - expected.double()).norm() / expected.double().norm())
    assert error < tolerance


DELTAS = [normal(6, 8, seed=s) for s in range(3)]
GRAMS = [gram(8, 40, seed=s + 10) for s in range(3)]
BASE = normal(6, 8, seed=99)


@pytest.mark.parametrize("offdiag", [0.0, 0.5, 1.0])
def test_regmean_is_its_formula_on_whole_weights(offdiag: float) -> None:
    mixed = [(offdiag * g + (1 - offdiag) * torch.diag(g.diagonal())).double() for g in GRAMS]
    weights = [BASE.double() + d.double() for d in DELTAS]
    right = sum(g @ w.T for g, w in zip(mixed, weights, strict=True))
    expected = torch.linalg.solve(sum(mixed), right).T
    got = merge_tensors("regmean", DELTAS, base=BASE, calibration=GRAMS, offdiag=offdiag)
    near(got, expected)


def test_weights_multiply_grams() -> None:
    scaled = [g * w for g, w in zip(GRAMS, (1.0, 3.0, 0.5), strict=True)]
    near(
        merge_tensors("regmean", DELTAS, calibration=GRAMS, weights=[1, 3, 0.5]),
        merge_tensors("regmean", DELTAS, calibration=scaled),
    )
    for weights in ([1, -1, 1], [0, 0, 0]):
        assert get("regmean").problems({"file": "", "weights": weights}) != []


@pytest.mark.parametrize("solver", ["diag_mix", "ridge", "pinv"])
def test_equal_experts_give_themselves_back(solver: str) -> None:
    thin = [gram(8, 3, seed=s) for s in range(3)]  # 8 inputs, of which 3 samples see few
    got = merge_tensors("regmean", [DELTAS[0]] * 3, calibration=GRAMS, solver=solver)
    near(got, DELTAS[0])
    if solver != "pinv":
        near(merge_tensors("regmean", [DELTAS[0]] * 3, calibration=thin, solver=solver), DELTAS[0])
        alone = merge_tensors("regmean", DELTAS[:1], calibration=thin[:1], solver=solver)
        near(alone, DELTAS[0])


def test_what_no_input_saw() -> None:
    thin = [gram(8, 2, seed=s) for s in range(2)]
    total = sum(g.double() for g in thin)
    right = sum(d.double() @ g.double() for d, g in zip(DELTAS, thin, strict=False))
    expected = right @ torch.linalg.pinv(total, rtol=1e-6, hermitian=True)
    near(merge_tensors("lot", DELTAS[:2], calibration=thin), expected, 1e-4)
    # RegMean on whole weights leaves the weight at zero there, LOT the base.
    unseen = torch.linalg.eigh(total)[1][:, :4]
    params = {"base": BASE, "calibration": thin, "solver": "pinv"}
    whole = merge_tensors("regmean", DELTAS[:2], target="weight", **params).double()
    change = merge_tensors("regmean", DELTAS[:2], target="delta", **params).double()
    assert float((whole @ unseen).norm()) < 1e-4
    near(change @ unseen, BASE.double() @ unseen, 1e-4)


def test_lot_is_regmean_where_all_inputs_are_seen() -> None:
    near(
        merge_tensors("lot", DELTAS, base=BASE, calibration=GRAMS),
        merge_tensors("regmean", DELTAS, base=BASE, calibration=GRAMS, solver="ridge", ridge=1e-12),
    )


def test_weights_that_stand_the_other_way_round() -> None:
    turned = [delta.T.contiguous() for delta in DELTAS]
    got = merge_tensors("regmean", turned, calibration=GRAMS, input="first")
    near(got.T, merge_tensors("regmean", DELTAS, calibration=GRAMS))
    assert get("regmean").statistic is not None
    assert get("regmean").statistic({"input": "first"}, (8, 6)).shape == (8, 8)


def test_gains_and_embeddings() -> None:
    energies = [normal(5, seed=s).square() for s in range(2)]
    deltas = [normal(5, seed=s + 5) for s in range(2)]
    expected = sum(e * d for e, d in zip(energies, deltas, strict=True)) / sum(energies)
    near(merge_tensors("lot", deltas, calibration=energies), expected)
    got = merge_tensors("regmean", DELTAS, calibration=GRAMS, role="head")
    near(got, sum(DELTAS) / 3)


def test_fisher_is_its_formula() -> None:
    fishers = [normal(6, 8, seed=s + 20).square() for s in range(3)]
    clamped = [f.double().clamp(min=0.05) * w for f, w in zip(fishers, (1, 2, 0.5), strict=True)]
    expected = sum(f * d.double() for f, d in zip(clamped, DELTAS, strict=True)) / sum(clamped)
    got = merge_tensors("fisher", DELTAS, calibration=fishers, weights=[1, 2, 0.5], floor=0.05)
    near(got, expected)


def test_without_statistics_in_hand_the_file_is_asked_for() -> None:
    with pytest.raises(RecipeError, match="`regmean` needs `file`"):
        merge_tensors("regmean", DELTAS)
