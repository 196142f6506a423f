"""Combines that look at one entry at a time, against a plain loop over entries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import get, merge_tensors

ENTRIES = st.lists(
    st.sampled_from([0.0, -0.5, 0.5, 1.0, -1.0, 2.0, -3.0, 4.0, 1e-5, -1e-5, 1e-6]),
    min_size=1,
    max_size=5,
)


def of_each(
    op: str, one: Callable[[list[float]], float], entry: list[float], **params: float
) -> None:
    got = merge_tensors(op, [torch.tensor([x]) for x in entry], **params)
    # What cancels leaves the rounding of what it was made of.
    slack = 1e-6 * max(map(abs, entry)) + 1e-12
    assert got.item() == pytest.approx(one(entry), rel=1e-6, abs=slack)


@given(ENTRIES)
def test_magmax_keeps_the_last_of_the_largest(entry: list[float]) -> None:
    top = max(map(abs, entry))
    of_each("magmax", lambda xs: [x for x in xs if abs(x) == top][-1], entry)


@given(ENTRIES, st.sampled_from([0.0, 1e-5, 0.75]))
def test_ram_averages_what_is_active(entry: list[float], epsilon: float) -> None:
    limit = float(torch.tensor(epsilon))

    def one(xs: list[float]) -> float:
        active = [x for x in torch.tensor(xs).tolist() if abs(x) > limit]
        return sum(active) / max(len(active), 1)

    of_each("ram", one, entry, epsilon=epsilon)


@given(
    # Sums of sixty-fourths are exact in fp32, so no claim is decided by rounding.
    st.lists(st.integers(-256, 256).map(lambda x: x / 64), min_size=2, max_size=5),
    st.integers(1, 2),
)
def test_consensus_counts_claims(entry: list[float], least: int) -> None:
    def one(xs: list[float]) -> float:
        total = sum(xs)
        return total if sum(abs(x) > 0.5 * abs(total - x) for x in xs) >= least else 0.0

    of_each("consensus", one, entry, mask_lambda=0.5, at_least=least)


def test_consensus_of_fewer_than_must_agree_is_refused() -> None:
    assert get("consensus").problems({"weights": [1.0, 1.0], "at_least": 3}) != []
    assert get("consensus").problems({"weights": [1.0, 1.0], "at_least": 2}) == []


@given(st.floats(-4, 4, width=32), st.floats(0, 3))
def test_nearswap_is_the_published_interpolation(delta: float, t: float) -> None:
    weight = min(1.0, t / abs(delta)) if delta else 0.0
    of_each("nearswap", lambda xs: weight * xs[0], [delta], t=t)


def test_nearswap_takes_one_expert() -> None:
    with pytest.raises(RecipeError, match="takes 1 to 1 inputs, not 2"):
        merge_tensors("nearswap", [torch.ones(2)] * 2, t=0.1)


def test_cape_and_port_patch_name_different_models() -> None:
    same = {"expert": "a", "anti_expert": "a"}
    assert get("cape").problems(same) == ["`expert` and `anti_expert` name the same expert"]
    assert get("cape").problems({"expert": "base", "anti_expert": "a"}) != []
    for wrong in (
        {"from": "a", "old_base": "a"},
        {"from": "base"},
        {"from": "a", "old_base": "base"},
    ):
        assert len(get("port_patch").problems(wrong)) == 1
    assert get("port_patch").problems({"from": "a"}) == []


def test_a_patch_moves_the_new_base_by_what_the_old_one_learnt() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new, patch = (torch.randn(4, 5, generator=generator) for _ in range(3))
    inputs = {"tuned": old + 0.01 * patch - new, "old": old - new}
    got = merge_tensors("port_patch", inputs, base=new, from_="tuned", old_base="old")
    torch.testing.assert_close(got, new + 0.01 * patch, atol=1e-6, rtol=0)


def test_other_names_of_an_op() -> None:
    deltas = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])]
    assert get("soup") is get("linear")
    assert torch.equal(merge_tensors("soup", deltas), merge_tensors("linear", deltas))
    assert get("stock") is get("model_stock")
    with pytest.raises(KeyError, match="did you mean `uniform_soup`"):
        get("uniform_sup")
