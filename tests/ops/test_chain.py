"""The torch chain against numpy loops that follow the documented order of operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import merge, merge_tensors
from mergekit_lite.ops._chain import Stage, split
from mergekit_lite.ops._place import Cut
from mergekit_lite.ops._statistics import EVERY, model_cuts
from mergekit_lite.ops.transform.magnitude import magnitude

f32 = np.float32
WEIGHTS = st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3), min_size=3, max_size=3)


def models(seed: int, count: int = 3, size: int = 64) -> tuple[torch.Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator).bfloat16()
    return base, {
        name: (base.float() + torch.randn(size, generator=generator) * 0.1).bfloat16()
        for name in "abcdefgh"[:count]
    }


def finished(base: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(y == 0, base, base + y)


def same_bits(got: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got.numpy().view(np.int32), expected.view(np.int32))


@given(weights=WEIGHTS, seed=st.integers(0, 99), normalize=st.booleans(), factor=st.floats(0.1, 2))
@settings(max_examples=40)
def test_task_arithmetic_in_numpy(
    weights: list[float], seed: int, normalize: bool, factor: float
) -> None:
    total = f32(0)
    for weight in weights:
        total = f32(total + f32(weight))
    if abs(total) < 1e-2:
        return
    base, experts = models(seed)
    params = {"weights": weights, "normalize": normalize, "lambda": factor}
    got = merge(base, experts, [Stage("task_arithmetic", params)])
    theta = base.float().numpy()
    y = None
    for weight, expert in zip(weights, experts.values(), strict=True):
        term = (expert.float().numpy() - theta) * f32(weight)
        y = term if y is None else y + term
    y = (y / total if normalize else y) * f32(factor)
    same_bits(got, finished(theta, y))


def consensus(deltas: list[np.ndarray], weights: list[float], elect: str, agg: str) -> np.ndarray:
    result = np.zeros_like(deltas[0])
    for j in range(len(result)):
        shares = [f32(d[j] * f32(w)) for d, w in zip(deltas, weights, strict=True)]
        votes = f32(0)
        for i, share in enumerate(shares):
            vote = share if elect == "mass" else np.sign(share)
            votes = vote if i == 0 else f32(votes + vote)
        sign = np.sign(votes) if votes != 0 else f32(1)
        numerator, mass, top = f32(0), f32(0), f32(0)
        for share, weight in zip(shares, weights, strict=True):
            if share != 0 and np.sign(share) == sign:
                numerator = f32(numerator + share)
                mass = f32(mass + abs(f32(weight)))
                top = max(top, abs(share))
        mean = f32(numerator / mass) if mass != 0 else f32(0)
        result[j] = {"mean": mean, "sum": numerator, "max": sign * top}[agg]
    return result


@given(
    weights=WEIGHTS,
    seed=st.integers(0, 99),
    elect=st.sampled_from(["mass", "count"]),
    agg=st.sampled_from(["mean", "sum", "max"]),
)
@settings(max_examples=40)
def test_sign_consensus_in_numpy(weights: list[float], seed: int, elect: str, agg: str) -> None:
    base, experts = models(seed)
    params = {"weights": weights, "elect": elect, "agg": agg}
    steps = [Stage("sign_consensus", params), Stage("scale", {"lambda": 0.3})]
    theta = base.float().numpy()
    deltas = [expert.float().numpy() - theta for expert in experts.values()]
    y = consensus(deltas, weights, elect, agg) * f32(0.3)
    same_bits(merge(base, experts, steps), finished(theta, y))


@given(weights=WEIGHTS, seed=st.integers(0, 99))
@settings(max_examples=40)
def test_linear_in_numpy(weights: list[float], seed: int) -> None:
    weights = [abs(weight) for weight in weights]
    _, experts = models(seed)
    y, total = None, f32(0)
    for weight, expert in zip(weights, experts.values(), strict=True):
        term = expert.float().numpy() * f32(weight)
        y = term if y is None else y + term
        total = f32(total + f32(weight))
    same_bits(merge(None, experts, [Stage("linear", {"weights": weights})]), y / total)


def test_zero_deltas_keep_negative_zero() -> None:
    base = torch.tensor([-0.0, 0.0, 1.0]).half()
    steps = [Stage("dare", {"density": 0.5}), Stage("sign_consensus"), Stage("scale")]
    merged = merge(base, {"a": base.clone(), "b": base.clone()}, steps)
    assert merged.signbit().tolist() == [True, False, False]


def test_an_experts_own_steps_run_on_that_expert_alone() -> None:
    base = torch.zeros(1, 4)
    experts = {"a": torch.tensor([[1.0, 2, 3, 4]]), "b": torch.tensor([[8.0, 6, 7, 5]])}
    steps = [Stage("magnitude", {"density": 0.25}, "a"), Stage("task_arithmetic")]
    assert merge(base, experts, steps).tolist() == [[8, 6, 7, 9]]


def test_weights_by_name_choose_the_inputs_and_may_name_the_base() -> None:
    base = torch.tensor([1.0])
    experts = {"a": torch.tensor([2.0]), "b": torch.tensor([4.0]), "c": torch.tensor([99.0])}
    weights = {"b": 1.0, "base": 3.0}
    assert merge(base, experts, [Stage("linear", {"weights": weights})]).item() == 1.75


def test_one_expert_is_interpolated_with_the_base() -> None:
    base, expert = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    both = merge(None, {"a": base, "b": expert}, [Stage("slerp", {"t": 0.25})])
    assert torch.equal(merge(base, {"b": expert}, [Stage("slerp", {"t": 0.25})]), both)
    with pytest.raises(RecipeError, match="reads base"):
        merge(None, {"b": expert}, [Stage("slerp")])


def test_statistics_of_the_model_are_handed_in() -> None:
    base = {"x": torch.zeros(1, 3), "y": torch.zeros(1, 3)}
    tuned = {"x": torch.tensor([[9.0, 8, 1]]), "y": torch.tensor([[2.0, 7, 3]])}
    params = {"density": 0.5, "scope": "model"}
    order = magnitude.spec.needs  # type: ignore[attr-defined]
    cuts = model_cuts(order, params, {name: tuned[name] - base[name] for name in base})
    assert cuts == (Cut(7.0, EVERY),)
    steps = [Stage("magnitude", params), Stage("task_arithmetic")]
    merged = {n: merge(base[n], {"a": tuned[n]}, steps, known={0: cuts}) for n in base}
    assert merged["x"].tolist() == [[9, 8, 0]]
    assert merged["y"].tolist() == [[0, 7, 0]]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (["magnitude"], "one combine"),
        (["linear", "linear"], "one combine"),
        (["task_arithmetic", "magnitude"], "transforms come before"),
        (["scale", "task_arithmetic"], "transforms come before"),
        (["magnitude", "linear"], "whole weights"),
        (["linear", "scale"], "whole weights"),
        (["ties", "task_arithmetic"], "preset"),
    ],
)
def test_what_is_no_chain(steps: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        split([Stage(step) for step in steps])


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([Stage("linear", {"weights": [1.0]})], "1 weights for 2 inputs"),
        ([Stage("linear", {"weights": [1.0, -1.0]})], "sum to 0"),
        ([Stage("take", {"source": "nobody"})], "reads nobody"),
        ([Stage("passthrough")], "cannot tell which"),
        ([Stage("drop")], "nothing to compute"),
        ([Stage("dare", {}, "nobody"), Stage("task_arithmetic")], "no input"),
    ],
)
def test_what_does_not_fit_its_inputs(steps: list[Stage], words: str) -> None:
    ones = torch.ones(2)
    with pytest.raises(RecipeError, match=words):
        merge(ones, {"a": ones, "b": ones}, steps)


def test_delta_ops_need_a_base() -> None:
    with pytest.raises(RecipeError, match="needs a base"):
        merge(None, {"a": torch.ones(2)}, [Stage("task_arithmetic")])


def test_merge_tensors_with_and_without_a_base() -> None:
    base, deltas = torch.tensor([1.0, -1.0]), [torch.tensor([0.5, 0.25])] * 2
    assert merge_tensors("task_arithmetic", deltas, weights=[2, 1]).tolist() == [1.5, 0.75]
    assert merge_tensors("ties", deltas, base=base, density=1.0).tolist() == [1.5, -0.75]
    assert merge_tensors("linear", deltas, base=base).tolist() == [1.5, -0.75]
    assert merge_tensors("scale", deltas[:1], lambda_=2.0).tolist() == [1.0, 0.5]
    named = {"x": deltas[0], "y": deltas[1] * 3}
    assert merge_tensors("take", named, base=base, source="y").tolist() == [2.5, -0.25]
    assert merge_tensors("take", named, base=base, source="base").tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("op", "params", "words"),
    [
        ("tise", {}, "did you mean `ties`"),
        ("ties", {"densty": 0.5}, "did you mean `density`"),
        ("ties", {"density": 0.0}, "0 < x <= 1"),
        ("ties", {"density": "half"}, "type float"),
        ("ties", {"elect": "vote"}, "mass, count"),
        ("take", {}, "needs `source`"),
        ("linear", {"weights": [1.0]}, "1 weights for 2"),
    ],
)
def test_merge_tensors_refuses(op: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        merge_tensors(op, [torch.ones(2)] * 2, **params)


def test_merge_tensors_takes_maps_by_expert() -> None:
    deltas = {name: torch.randn(8, 50) for name in ("a", "b")}
    by_name = merge_tensors(
        "ties", deltas, density={"a": 0.1, "default": 0.6}, weights={"b": 2.0, "a": 1.0}
    )
    steps = [
        Stage("magnitude", {"density": 0.1}, "a"),
        Stage("magnitude", {"density": 0.6}, "b"),
        Stage("sign_consensus", {"weights": [1.0, 2.0]}),
    ]
    assert torch.equal(by_name, merge(torch.zeros(8, 50), deltas, steps))


@pytest.mark.parametrize(
    ("op", "given", "says"),
    [
        ("ties", {"weights": {"a": 1.0}}, "weights for a; deltas a, b"),
        ("ties", {"weights": [1.0]}, "1 weights for 2 deltas"),
        ("ties", {"density": {"a": 0.1}}, "`density` has no value for `b`"),
        ("ties", {"lambda_": {"a": 0.1, "b": 0.2}}, "takes one value, not one for each expert"),
        ("linear", {"base": torch.zeros(3)}, r"differ in shape: base \[3\], a \[4\], b \[4\]"),
    ],
)
def test_merge_tensors_says_what_does_not_fit(op: str, given: dict[str, Any], says: str) -> None:
    deltas = {name: torch.randn(4) for name in ("a", "b")}
    with pytest.raises(RecipeError, match=says):
        merge_tensors(op, deltas, **given)
