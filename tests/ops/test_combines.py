"""Combines and presets by their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import get, merge_tensors
from mergekit_lite.ops._place import Place
from mergekit_lite.ops._statistics import totals
from mergekit_lite.ops.combine.slerp import arc_weights


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(t=st.floats(0, 1), angle=st.floats(0.05, 3.0))
@settings(max_examples=60)
def test_slerp_moves_at_constant_speed_on_the_circle(t: float, angle: float) -> None:
    start = torch.tensor([1.0, 0.0])
    end = torch.tensor([math.cos(angle), math.sin(angle)])
    got = merge_tensors("slerp", [start, end], t=t)
    expected = torch.tensor([math.cos(t * angle), math.sin(t * angle)])
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_slerp_ends_are_the_models() -> None:
    a, b = normal(9, 9), normal(9, 9, seed=1)
    assert torch.equal(merge_tensors("slerp", [a, b], t=0.0), a)
    assert torch.equal(merge_tensors("slerp", [a, b], t=1.0), b)


def test_slerp_of_near_parallel_models_is_a_line() -> None:
    a = normal(50)
    b = a + 1e-3 * normal(50, seed=1)
    assert arc_weights(0.25, 0.9995, totals([a, b])) == (0.75, 0.25)
    bent = arc_weights(0.25, 1.0, totals([a, b]))
    assert bent != (0.75, 0.25)
    assert bent == pytest.approx((0.75, 0.25), abs=1e-4)
    assert arc_weights(0.25, 1.0, totals([a, a])) == pytest.approx((0.75, 0.25), abs=1e-6)
    assert arc_weights(0.25, 0.9995, totals([a, torch.zeros(50)])) == (0.75, 0.25)


def test_slerp_takes_two() -> None:
    with pytest.raises(RecipeError, match="takes 1 to 2 inputs, not 3"):
        merge_tensors("slerp", [normal(2)] * 3)


def test_normalised_sums_divide_by_the_weights() -> None:
    deltas = [normal(5, seed=s) for s in range(3)]
    weights = [0.5, 0.25, 0.25]
    mean = 0.5 * deltas[0] + 0.25 * deltas[1] + 0.25 * deltas[2]
    torch.testing.assert_close(merge_tensors("linear", deltas, weights=[2, 1, 1]), mean)
    scaled = merge_tensors("task_arithmetic", deltas, weights=[2, 1, 1], normalize=True)
    torch.testing.assert_close(scaled, mean)
    torch.testing.assert_close(merge_tensors("linear", deltas, weights=weights), mean)
    for op in ("linear", "task_arithmetic"):
        assert get(op).problems({"normalize": True, "weights": [1.0, -1.0]}) != []
        assert get(op).problems({"normalize": False, "weights": [1.0, -1.0]}) == []
        with pytest.raises(RecipeError, match="sum to 0"):
            merge_tensors(op, deltas[:2], weights=[1, -1], normalize=True)


def test_copies_of_one_expert_give_its_trimmed_delta() -> None:
    delta = normal(8, 8)
    trimmed = merge_tensors("magnitude", [delta])
    torch.testing.assert_close(merge_tensors("ties", [delta] * 4), trimmed)
    torch.testing.assert_close(merge_tensors("linear", [delta] * 4), delta)


def test_lambda_zero_is_the_base_bit_for_bit() -> None:
    base = torch.tensor([[-0.0, 1.5, -2e-40]])
    for op in ("task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs_ties"):
        merged = merge_tensors(op, [normal(1, 3), normal(1, 3, seed=1)], base=base, lambda_=0.0)
        assert torch.equal(merged.view(torch.int32), base.view(torch.int32)), op


def test_an_outlier_wins_by_mass_and_loses_by_count() -> None:
    deltas = [torch.tensor([10.0]), torch.tensor([-1.0]), torch.tensor([-2.0])]
    assert merge_tensors("sign_consensus", deltas).item() == 10.0
    assert merge_tensors("sign_consensus", deltas, elect="count").item() == -1.5


def test_a_negative_weight_votes_for_the_other_sign() -> None:
    deltas = [torch.tensor([3.0]), torch.tensor([-1.0])]
    result = merge_tensors("sign_consensus", deltas, weights=[-1, 1], agg="sum")
    assert result.item() == -4.0


def swap(layer: int | None, layers: int = 12, **changed: Any) -> list[tuple[str, dict[str, Any]]]:
    given = {"from": "de", "into": "math", "bottom": 2, "top": 1, **changed}
    spec = get("layer_swap")
    arguments = spec.arguments({**spec.defaults(), **given})
    place = Place(layer=layer, layers=layers)
    return list(spec.function(place=place, **arguments))


def test_layers_are_swapped_where_the_paper_says() -> None:
    letters = ""
    for layer in range(12):
        [(op, params)] = swap(layer, transition_top=2)
        letters += "/" if op == "linear" else {"de": "A", "math": "B"}[params["source"]]
    assert letters == "AA/BBBBBB//A"


def test_a_side_without_swapped_layers_has_no_transition() -> None:
    assert swap(0, bottom=0) == [("take", {"source": "math"})]
    assert swap(11, top=0) == [("take", {"source": "math"})]


@pytest.mark.parametrize(
    ("outer", "chain"),
    [
        ("from", [("take", {"source": "de"})]),
        ("into", [("take", {"source": "math"})]),
        ("base", [("take", {"source": "base"})]),
        ("mean", [("linear", {"weights": {"de": 0.5, "math": 0.5}, "normalize": False})]),
    ],
)
def test_what_becomes_of_tensors_outside_the_layers(outer: str, chain: list[Any]) -> None:
    assert swap(None, outer=outer) == chain


def test_a_swap_that_does_not_fit_is_refused() -> None:
    assert len(swap(0, layers=5)) == 1
    with pytest.raises(RecipeError, match="the model has 4"):
        swap(0, layers=4)
    same = {"from": "de", "into": "de", "bottom": 1, "top": 1}
    assert get("layer_swap").problems(same) == ["`from` and `into` name the same expert"]
