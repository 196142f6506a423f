"""Differences of two checkpoints, against torch in one piece."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mergekit_lite.report import diff
from mergekit_lite.report.diff import by_layer, by_role, compare
from mergekit_lite.sources import resolve
from tests.checkpoints import write_weights


def model(folder: Path, **tensors: torch.Tensor):  # type: ignore[no-untyped-def]
    write_weights(folder, {name.replace("__", "."): value for name, value in tensors.items()})
    return resolve(str(folder), relative_to=Path())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_sums_equal_torch(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "TILE", 64)
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(9, 33, generator=generator).to(getattr(torch, dtype))
    b = a.clone()
    b[3] += 1
    found = compare(model(tmp_path / "a", w=a), model(tmp_path / "b", w=b))
    total, x, y = found.total, a.double(), b.double()
    assert total.entries == 297
    assert total.changed == int((a != b).sum())
    assert total.norm == pytest.approx(float((y - x).norm()), rel=1e-12)
    assert total.relative == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-12)
    cosine = float((x * y).sum() / x.norm() / y.norm())
    assert total.cosine == pytest.approx(cosine, rel=1e-12)
    assert not found.same


def test_groups_by_layer_and_role(tmp_path: Path) -> None:
    names = (
        "model__layers__0__mlp__up_proj__weight",
        "model__layers__1__mlp__up_proj__weight",
        "model__norm__weight",
    )
    a = {name: torch.zeros(2, 2) for name in names}
    b = {name: torch.full((2, 2), float(i)) for i, name in enumerate(names)}
    groups = compare(model(tmp_path / "a", **a), model(tmp_path / "b", **b)).groups
    assert list(groups) == [(None, "norm"), (0, "mlp.up"), (1, "mlp.up")]
    assert {layer: pair.norm for layer, pair in by_layer(groups).items()} == {None: 4, 0: 0, 1: 2}
    assert by_role(groups)["mlp.up"].norm == 2
    assert groups[0, "mlp.up"].relative is None
    assert groups[0, "mlp.up"].cosine is None


def test_mixed_dtypes_and_codes(tmp_path: Path) -> None:
    a = model(tmp_path / "a", w=torch.ones(4), n=torch.tensor([1, 2, 3]), odd=torch.ones(2))
    b = model(
        tmp_path / "b",
        w=torch.ones(4, dtype=torch.bfloat16),
        n=torch.tensor([1, 2, 4]),
        odd=torch.ones(3),
        new=torch.ones(1),
    )
    found = compare(a, b)
    assert found.total.changed == 1
    assert found.total.norm == 0
    assert found.unlike == ("odd",)
    assert found.only_b == ("new",)
    assert found.only_a == ()
    assert not found.same


def test_empty_tensors_and_scalars(tmp_path: Path) -> None:
    tensors = {"e": torch.zeros(0, 3), "s": torch.tensor(2.0)}
    found = compare(model(tmp_path / "a", **tensors), model(tmp_path / "b", **tensors))
    assert found.same
    assert found.total.tensors == 2
    assert math.isclose(found.total.cosine or 0, 1)


def test_progress_counts_the_bytes_of_both(tmp_path: Path) -> None:
    a = model(tmp_path / "a", w=torch.ones(100))
    b = model(tmp_path / "b", w=torch.ones(100, dtype=torch.bfloat16))
    seen: list[int] = []
    compare(a, b, seen.append)
    assert sum(seen) == 600
