"""Matrix methods against dense SVDs in fp64, and the factorisations that they share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.ops import _spectral as spectral
from mergekit_lite.ops import merge_tensors
from mergekit_lite.ops._place import Place
from mergekit_lite.ops.combine.iso_cts import shares

HERE = Place(name="w")
SHAPES = [(24, 24), (20, 70), (70, 20), (96, 130)]
COMBINES = ["tsv_merge", "iso_c", "iso_cts", "cart"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(rows: int, columns: int, rank: int, seed: int = 0) -> torch.Tensor:
    return normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 99) / math.sqrt(rank)


def decaying(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values fall by ten for every eighth of them."""
    u, s, v = torch.linalg.svd(normal(rows, columns, seed=seed).double(), full_matrices=False)
    sizes = 10.0 ** (-8 * torch.arange(len(s)) / (3 * len(s)))
    return ((u * sizes) @ v).float()


def tasks(rows: int, columns: int, count: int = 3) -> list[torch.Tensor]:
    return [decaying(rows, columns, seed=s) for s in range(count)]


def sizes_of(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(matrix.double())


def polar(matrix: torch.Tensor) -> torch.Tensor:
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def dense_join(parts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    left = polar(torch.cat([u for u, _, _ in parts], 1))
    right = polar(torch.cat([v for _, _, v in parts], 0))
    return (left * torch.cat([s for _, s, _ in parts])) @ right


def top(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u[:, :count], s[:count], v[:count]


def near(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    error = float((got.double() - expected.double()).norm() / expected.double().norm())
    assert error < tolerance


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thin_decomposition_is_that_of_an_svd(shape: tuple[int, int]) -> None:
    matrix = decaying(*shape)
    found = spectral.thin_svd(matrix, HERE)
    torch.testing.assert_close(found.sizes, sizes_of(matrix), rtol=1e-5, atol=1e-7)
    near(found.product(), matrix, 1e-6)
    for basis in (found.left, found.right):
        overlap = basis.double().T @ basis.double()
        torch.testing.assert_close(overlap, torch.eye(len(overlap)).double(), atol=2e-6, rtol=0)


def test_a_gram_in_blocks_is_the_product() -> None:
    matrix = normal(517, 4100)
    expected = (matrix.double() @ matrix.double().T).tril()
    torch.testing.assert_close(spectral.gram(matrix).tril(), expected, rtol=1e-12, atol=1e-10)


def test_directions_below_the_tail_are_left_out() -> None:
    found = spectral.thin_svd(low_rank(12, 30, 4), HERE)
    assert found.sizes.numel() == 4
    assert spectral.thin_svd(torch.diag(torch.tensor([1.0, 1e-4, 1e-6])), HERE).sizes.numel() == 2
    assert spectral.thin_svd(torch.zeros(5, 9), HERE).sizes.numel() == 0


@pytest.mark.parametrize("shape", [(200, 300), (300, 200)])
def test_a_low_rank_is_found_by_the_probe(shape: tuple[int, int]) -> None:
    matrix = low_rank(*shape, 12)
    wide = matrix if shape[0] < shape[1] else matrix.T
    found = spectral._low_rank(wide, HERE)
    assert found is not None
    near(found.product(), wide, 1e-6)
    torch.testing.assert_close(found.sizes, sizes_of(matrix)[:12], rtol=1e-6, atol=0)
    assert spectral._low_rank(decaying(200, 300), HERE) is None
    # A thirteenth component just above the tail is not lost.
    more = wide + 5e-3 * torch.outer(normal(200, seed=5), normal(300, seed=6)) / 245
    assert spectral.thin_svd(more, HERE).sizes.numel() == 13


def test_the_top_by_iteration_is_as_good_as_the_top() -> None:
    matrix = decaying(160, 400)
    best = sizes_of(matrix)
    found = spectral.top_svd(matrix, 12, HERE)
    assert found.sizes.numel() == 12
    error = float((matrix - found.product()).double().square().sum())
    assert error <= float(best[12:].square().sum()) * 1.001
    torch.testing.assert_close(found.sizes, best[:12], rtol=1e-4, atol=0)
    flat = normal(160, 400)  # no gap anywhere
    found = spectral.top_svd(flat, 12, HERE)
    error = float((flat - found.product()).double().square().sum())
    assert error <= float(sizes_of(flat)[12:].square().sum()) * 1.001


@pytest.mark.parametrize("shape", SHAPES)
def test_tsv_is_its_formula(shape: tuple[int, int]) -> None:
    inputs = tasks(*shape)
    kept = min(shape) // 3
    near(merge_tensors("tsv_merge", inputs), dense_join([top(t, kept) for t in inputs]))
    few = dense_join([top(t, int(min(shape) * 0.1)) for t in inputs])
    near(merge_tensors("tsv_merge", inputs, keep=0.1, alpha=2.0), 2 * few)


def test_tsv_keeps_the_spectra_of_its_inputs() -> None:
    inputs = tasks(30, 45)
    expected = torch.cat([sizes_of(t)[:10] for t in inputs]).sort(descending=True).values
    got = sizes_of(merge_tensors("tsv_merge", inputs))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c_is_its_formula(shape: tuple[int, int]) -> None:
    inputs = tasks(*shape)
    u, s, v = torch.linalg.svd(sum(t.double() for t in inputs), full_matrices=False)
    near(merge_tensors("iso_c", inputs), s.mean() * (u @ v))
    weighted = 2 * inputs[0].double() - inputs[1].double() + 0.5 * inputs[2].double()
    u, s, v = torch.linalg.svd(weighted, full_matrices=False)
    near(merge_tensors("iso_c", inputs, weights=[2, -1, 0.5]), s.mean() * (u @ v))


def test_iso_c_gives_null_directions_nothing() -> None:
    inputs = [low_rank(64, 80, 2, seed=s) for s in range(2)]
    got = sizes_of(merge_tensors("iso_c", inputs))
    mean = float(sizes_of(inputs[0] + inputs[1])[:4].mean())
    torch.testing.assert_close(got[:4], torch.full((4,), mean).double(), rtol=1e-5, atol=0)
    assert float(got[4]) < 1e-5 * mean


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_cts_is_its_formula(shape: tuple[int, int]) -> None:
    inputs = tasks(*shape)
    common, each = shares(min(shape), 0.8, 3)
    u, s, v = top(sum(t.double() for t in inputs), common)
    parts = [top(t.double() - u @ (u.T @ t.double()), each) for t in inputs] + [(u, s, v)]
    mean = torch.cat([sizes for _, sizes, _ in parts]).mean()
    parts = [(a, torch.ones_like(b) * mean, c) for a, b, c in parts]
    near(merge_tensors("iso_cts", inputs), dense_join(parts))


def test_iso_cts_shares_its_directions_out() -> None:
    assert shares(100, 0.8, 3) == (79, 7)
    assert shares(10, 0.8, 5) == (10, 0)
    assert shares(8, 1.0, 2) == (8, 0)


def test_cart_is_its_formula() -> None:
    inputs = tasks(60, 90)
    centre = sum(t.double() for t in inputs) / 3
    for fraction in (0.08, 0.5):
        rest = torch.zeros(60, 90).double()
        for task in inputs:
            u, s, v = top(task.double() - centre, int(60 * fraction))
            rest += (u * s) @ v
        got = merge_tensors("cart", inputs, rank_fraction=fraction, lambda_=1.5)
        near(got, centre + 1.5 * rest, 1e-3)


def test_svc_is_its_formula() -> None:
    inputs = tasks(18, 40)
    merged = sum(t.double() for t in inputs)
    u, s, v = torch.linalg.svd(merged, full_matrices=False)
    expected = torch.zeros_like(merged)
    for r in range(18):
        along = u[:, r] @ merged
        votes = []
        for task in inputs:
            own = u[:, r] @ task.double()
            votes.append(max(0.1, float(along @ own / (own @ own))))
        expected += 3 / sum(votes) * s[r] * torch.outer(u[:, r], v[r])
    near(merge_tensors("svc", inputs, alpha=0.1), expected, 1e-4)


@given(count=st.integers(1, 5), rows=st.integers(2, 20), columns=st.integers(2, 20))
@settings(max_examples=25)
def test_svc_gives_one_of_many_copies_back(count: int, rows: int, columns: int) -> None:
    delta = normal(rows, columns)
    torch.testing.assert_close(merge_tensors("svc", [delta] * count), delta, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("op", COMBINES)
@pytest.mark.parametrize("shape", [(30, 45), (45, 30)])
def test_turned_inputs_give_the_turned_result(op: str, shape: tuple[int, int]) -> None:
    """Iso-CTS takes the tasks' own parts by their left vectors alone, so it only turns."""
    inputs = tasks(*shape)
    turn = torch.linalg.qr(normal(shape[0], shape[0], seed=7))[0]
    got = merge_tensors(op, [turn @ t for t in inputs])
    near(got, turn @ merge_tensors(op, inputs), 2e-3)


@pytest.mark.parametrize("op", ["tsv_merge", "iso_c", "iso_cts", "svc"])
def test_an_expert_that_changes_nothing_adds_nothing(op: str) -> None:
    inputs = tasks(24, 33)
    alone = merge_tensors(op, inputs)
    beside = merge_tensors(op, [inputs[0], torch.zeros(24, 33), *inputs[1:]])
    assert torch.equal(alone, beside)


@pytest.mark.parametrize("op", [*COMBINES, "svc"])
def test_adapters_of_low_rank_stay_of_low_rank(op: str) -> None:
    inputs = [low_rank(120, 150, 3, seed=s) for s in range(3)]
    got = sizes_of(merge_tensors(op, inputs))
    assert float(got[9]) < 1e-5 * float(got[0])


def test_copies_of_a_task_give_its_leading_part() -> None:
    delta = decaying(30, 40)
    u, s, v = top(delta, 15)
    near(merge_tensors("tsv_merge", [delta, delta]), (u * s) @ v)
    near(merge_tensors("tsv_merge", [delta] * 4, keep=1.0), delta)
    near(merge_tensors("cart", [delta] * 3), delta)


def test_more_tasks_than_directions_give_the_mean() -> None:
    inputs = [normal(2, 5, seed=s) for s in range(3)]
    near(merge_tensors("tsv_merge", inputs), sum(inputs) / 3, 1e-6)


@pytest.mark.parametrize("op", COMBINES)
def test_embeddings_get_the_mean_unless_asked(op: str) -> None:
    inputs = tasks(12, 9)
    for role in ("embedding", "head"):
        near(merge_tensors(op, inputs, role=role), sum(inputs) / 3, 1e-6)
    asked = merge_tensors(op, inputs, role="head", embeddings=True)
    assert torch.equal(asked, merge_tensors(op, inputs))


@pytest.mark.parametrize("op", COMBINES)
def test_convolutions_are_matrices_if_asked(op: str) -> None:
    inputs = [t.reshape(12, 5, 3, 3) for t in tasks(12, 45)]
    near(merge_tensors(op, inputs), sum(inputs) / 3, 1e-6)
    flat = merge_tensors(op, [t.reshape(12, 45) for t in inputs])
    assert torch.equal(merge_tensors(op, inputs, flatten_conv=True).reshape(12, 45), flat)


def test_a_weight_multiplies_its_task() -> None:
    a, b = tasks(20, 30, count=2)
    for op in COMBINES:
        near(merge_tensors(op, [a, b], weights=[2, 0.5]), merge_tensors(op, [2 * a, b / 2]), 1e-6)


def test_svc_looks_at_deltas_as_they_came() -> None:
    from mergekit_lite.ops import merge
    from mergekit_lite.ops._chain import Stage

    a, b = normal(6, 8), normal(6, 8, seed=1)
    halved = [Stage("magnitude", {"density": 0.5}), Stage("task_arithmetic"), Stage("svc")]
    before = merge(torch.zeros(6, 8), {"a": a, "b": b}, halved[:2])
    got = merge(torch.zeros(6, 8), {"a": a, "b": b}, halved)
    place = Place(name="", size=48)
    from mergekit_lite.ops.post.svc import svc

    assert torch.equal(got, svc(before, place=place, deltas=[a, b]))


def test_what_stands_in_is_the_same_to_the_bit() -> None:
    from mergekit_lite.ops import get

    inputs = [normal(40, seed=s) for s in range(3)]
    for op in COMBINES:
        spec = get(op)
        params = spec.defaults()
        name, given_params = spec.stand_in(params, (40,), "norm", 3) or ("", {})
        expected = merge_tensors(name, inputs, weights=[1, 2, 3], **given_params)
        assert torch.equal(merge_tensors(op, inputs, weights=[1, 2, 3]), expected)
        assert spec.stand_in(params, (40, 2), "attention.q", 3) is None
