"""Masks by magnitude, entry by entry: which are kept, and of equal ones the first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import get, merge_tensors
from mergekit_lite.ops._place import Place
from mergekit_lite.ops.combine.sparsify import sparsify

FEW = st.integers(0, 1000).map(
    lambda seed: torch.randint(-3, 4, (3, 11), generator=torch.Generator().manual_seed(seed))
)
"""Matrices with many equal entries."""


def kept(values: list[float], count: int) -> list[float]:
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count]
    return [value if i in order else 0.0 for i, value in enumerate(values)]


@given(matrix=FEW, n=st.integers(1, 5), m=st.integers(2, 6))
def test_groups_along_a_row(matrix: torch.Tensor, n: int, m: int) -> None:
    if n >= m:
        return
    matrix = matrix.float()
    wanted = [
        [x for start in range(0, 11, m) for x in kept(row[start : start + m], n)]
        for row in matrix.tolist()
    ]
    assert merge_tensors("sparsify", [matrix], n=n, m=m).tolist() == wanted
    assert merge_tensors("n_of_m", [matrix], n=n, m=m).tolist() == wanted


@given(matrix=FEW, density=st.floats(0.01, 1))
def test_rows_and_whole_tensors(matrix: torch.Tensor, density: float) -> None:
    matrix = matrix.float()
    rows = [kept(row, max(1, int(density * 11))) for row in matrix.tolist()]
    assert merge_tensors("sparsify", [matrix], density=density, unit="row").tolist() == rows
    whole = kept(matrix.flatten().tolist(), max(1, int(density * 33)))
    assert merge_tensors("sparsify", [matrix], density=density).flatten().tolist() == whole


def test_embeddings_are_spared_unless_asked_for() -> None:
    matrix, place = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), Place(role="embedding")
    assert torch.equal(sparsify([matrix], place=place), matrix)
    some = sparsify([matrix], place=place, embeddings=True)
    assert some.tolist() == [[0, 0], [3, 4]]


@pytest.mark.parametrize(
    ("params", "problem"),
    [({"n": 2}, "belong together"), ({"n": 4, "m": 4}, "all of them"), ({"m": 4}, "together")],
)
def test_what_makes_no_group_is_refused(params: dict[str, int], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        merge_tensors("sparsify", [torch.ones(2, 4)], **params)


def test_only_a_rank_among_all_needs_a_whole_tensor() -> None:
    spec = get("sparsify")
    assert spec.reach_for(spec.defaults()) == "tensor"
    assert spec.reach_for({**spec.defaults(), "n": 2, "m": 4}) == "row"
    assert spec.reach_for({**spec.defaults(), "unit": "row"}) == "row"
