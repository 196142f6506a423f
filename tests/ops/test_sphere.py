"""Means on spheres, against the textbook formulas on whole vectors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergekit_lite.ops import get, merge_tensors
from mergekit_lite.ops._rows import column_dots, row_dots, row_sums
from mergekit_lite.ops._sphere import arc


def vectors(count: int, *shape: int, seed: int = 0, near: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(shape, generator=generator)
    return [centre + near * torch.randn(shape, generator=generator) for _ in range(count)]


def dense_karcher(given: list[Tensor], weights: list[float], steps: int = 60) -> Tensor:
    """The mean by exponential and logarithmic maps on the vectors themselves."""
    flat = [v.double().flatten() for v in given]
    share = [w / sum(weights) for w in weights]
    units = [v / v.norm() for v in flat]
    mean = sum(w * u for w, u in zip(share, units, strict=True))
    mean = mean / mean.norm()
    for _ in range(steps):
        tangent = torch.zeros_like(mean)
        for weight, unit in zip(share, units, strict=True):
            angle = torch.acos((mean @ unit).clamp(-1, 1))
            if angle > 1e-9:
                tangent += weight * angle / angle.sin() * (unit - angle.cos() * mean)
        step = tangent.norm()
        if step < 1e-12:
            break
        mean = step.cos() * mean + step.sin() * tangent / step
    length = sum(w * v.norm() for w, v in zip(share, flat, strict=True))
    return (length * mean).reshape(given[0].shape).float()


@given(
    count=st.integers(2, 5), seed=st.integers(0, 10**6), near=st.sampled_from([1e-3, 0.3, 1.0, 3.0])
)
@settings(max_examples=40)
def test_karcher_is_the_mean_on_the_sphere(count: int, seed: int, near: float) -> None:
    given_ = vectors(count, 40, seed=seed, near=near)
    weights = [1.0 + 0.5 * i for i in range(count)]
    got = merge_tensors("karcher", given_, weights=weights, max_iter=60, tol=1e-9)
    torch.testing.assert_close(got, dense_karcher(given_, weights), atol=2e-5, rtol=2e-5)


def test_karcher_is_no_normalised_average() -> None:
    """Far apart and with unequal weights the two means are different points."""
    axes = list(torch.eye(3) + 0.05)
    weights = [0.7, 0.2, 0.1]
    karcher = merge_tensors("karcher", axes, weights=weights)
    slerped = merge_tensors("multislerp", axes, weights=weights)
    assert float(karcher.norm()) == pytest.approx(float(slerped.norm()), abs=1e-5)
    angle = math.acos(float(karcher @ slerped / karcher.norm() / slerped.norm()))
    assert 0.02 < angle < 0.5


def test_karcher_of_opposite_directions_stays_finite() -> None:
    v = torch.tensor([1.0, 2.0])
    assert torch.equal(merge_tensors("karcher", [v, -v]), v)


@given(count=st.integers(2, 5), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_multislerp_is_a_direction_times_a_length(count: int, seed: int) -> None:
    given_ = vectors(count, 5, 8, seed=seed)
    weights = [0.5 + i for i in range(count)]
    share = [w / sum(weights) for w in weights]
    direction = sum(w * v.double() / v.double().norm() for w, v in zip(share, given_, strict=True))
    length = sum(w * v.double().norm() for w, v in zip(share, given_, strict=True))
    expected = (length * direction / direction.norm()).float()
    got = merge_tensors("multislerp", given_, weights=weights)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@given(t=st.floats(0, 1), angle=st.floats(0.01, 3.1))
@settings(max_examples=60)
def test_an_arc_keeps_its_speed(t: float, angle: float) -> None:
    left, right = arc(t, math.cos(angle))
    x, y = left + right * math.cos(angle), right * math.sin(angle)
    assert math.hypot(x, y) == pytest.approx(1, abs=1e-9)
    assert math.atan2(y, x) == pytest.approx(t * angle, abs=1e-9)


@pytest.mark.parametrize("shape", [(6, 9), (2, 3, 5), (7,)])
def test_nuslerp_by_row_is_nuslerp_of_each_row(shape: tuple[int, ...]) -> None:
    a, b = vectors(2, *shape)
    got = merge_tensors("nuslerp", [a, b], weights=[1, 2], unit="row")
    rows = zip(a.reshape(-1, shape[-1]), b.reshape(-1, shape[-1]), strict=True)
    each = [merge_tensors("nuslerp", list(pair), weights=[1, 2]) for pair in rows]
    torch.testing.assert_close(got, torch.stack(each).reshape(shape), atol=1e-6, rtol=1e-6)


def test_nuslerp_by_column_is_that_of_the_transpose() -> None:
    a, b = vectors(2, 6, 9)
    got = merge_tensors("nuslerp", [a, b], weights=[3, 1], unit="column")
    turned = merge_tensors("nuslerp", [a.t(), b.t()], weights=[3, 1], unit="row").t()
    assert torch.equal(got, turned)


def test_nuslerp_needs_a_position() -> None:
    assert get("nuslerp").problems({"weights": [1.0, -1.0]}) != []
    assert get("nuslerp").problems({"weights": [1.0, -0.5]}) == []


def stock(given_: list[Tensor], clamp: bool) -> Tensor:
    """Model Stock by its formula, on one vector."""
    count = len(given_)
    cosines = [
        float(torch.cosine_similarity(given_[i].double(), given_[j].double(), dim=0))
        for i in range(count)
        for j in range(i)
    ]
    c = sum(cosines) / len(cosines)
    c = max(c, 0.0) if clamp else c
    return count * c / (1 + (count - 1) * c) * sum(given_) / count


@pytest.mark.parametrize("clamp", [True, False])
@given(count=st.integers(2, 5), seed=st.integers(0, 10**6), near=st.sampled_from([0.3, 3.0]))
@settings(max_examples=30)
def test_model_stock_of_rows_and_of_tensors(
    clamp: bool, count: int, seed: int, near: float
) -> None:
    given_ = vectors(count, 5, 8, seed=seed, near=near)
    got = merge_tensors("model_stock", given_, clamp_t=clamp)
    whole = stock([v.flatten() for v in given_], clamp).reshape(5, 8)
    torch.testing.assert_close(got, whole, atol=1e-4, rtol=1e-4)
    by_row = merge_tensors("model_stock", given_, clamp_t=clamp, filter_wise=True)
    rows = [stock([v[r] for v in given_], clamp) for r in range(5)]
    torch.testing.assert_close(by_row, torch.stack(rows), atol=1e-4, rtol=1e-4)


def test_model_stock_does_not_depend_on_the_size_of_changes() -> None:
    """Small norms of 1e-7 give the same ratio as large ones."""
    large = vectors(3, 64, near=0.5)
    small = [v * 1e-7 for v in large]
    expected = merge_tensors("model_stock", large) * 1e-7
    torch.testing.assert_close(merge_tensors("model_stock", small), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("count", "cosine", "t"), [(2, 0.3, 0.462), (3, 0.3, 0.562), (8, 0.9, 0.986)]
)
def test_model_stock_ratios_of_the_paper(count: int, cosine: float, t: float) -> None:
    from mergekit_lite.ops.combine.model_stock import ratio

    assert ratio(count, cosine, True) == pytest.approx(t, abs=5e-4)
    assert (ratio(count, 1.0, True), ratio(count, -0.1, True)) == (1.0, 0.0)
    assert ratio(3, -0.5, False) == 0.0


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200])
def test_products_of_columns_are_sums_whatever_the_number_of_columns(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    left, right = torch.randn(2, rows, 5, generator=generator)
    expected = [[math.fsum(column)] for column in (left.double() * right.double()).t().tolist()]
    got = column_dots(left, right)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    apart = [column_dots(left[:, [i]], right[:, [i]]) for i in range(5)]
    assert torch.equal(got, torch.cat(apart))


@given(rows=st.integers(1, 4), width=st.integers(0, 70), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_row_sums_are_sums_whatever_the_number_of_rows(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    expected = [[math.fsum(row)] for row in x.tolist()]
    got = row_sums(x.clone())
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64).reshape(rows, 1))
    assert torch.equal(got, torch.cat([row_sums(row[None].clone()) for row in x]))
    before = x.clone()
    row_dots(x, x)
    assert torch.equal(x, before)
