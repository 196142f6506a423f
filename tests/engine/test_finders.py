"""Combines whose statistics are of a kind of their own: the same bytes however a row is swept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergekit_lite.engine.kinds import wanted_kernels
from mergekit_lite.engine.program import compile_job
from mergekit_lite.errors import DataError
from mergekit_lite.kernels._jit import Kernel
from mergekit_lite.kernels.changes import changes_tile
from mergekit_lite.plan.row_memory import torch_bytes
from mergekit_lite.plan.types import Plan, Step
from mergekit_lite.sources import Model
from tests.engine.memory_models import one_tensor
from tests.engine.plans import each, expected, output, plan_for, run, same_bytes, save_models

# "narrow" has rows shorter than the lanes of a sum, "long" rows of several blocks of sums.
SHAPES = {
    "wide": (301, 513), "tall": (3000, 96), "narrow": (2000, 3), "long": (6, 9001),
    "cube": (5, 7, 77), "vector": (77,), "one": (1,), "scalar": (),
}  # fmt: skip
LIMIT = {"epsilon": 1e-3}
SCALE = Step("scale", {"lambda": 0.7})
TWO, THREE = ("a", "b"), ("a", "b", "c")
CHAINS: dict[str, tuple[Sequence[str], list[Step]]] = {
    "sce": (THREE, [Step("sce"), SCALE]),
    "sce of two": (TWO, [Step("sce", {"select_topk": 0.7, "merge_masked": False})]),
    "nuslerp by row": (TWO, [Step("nuslerp", {"weights": [0.5, 2.0], "unit": "row"})]),
    "nuslerp by column": (TWO, [Step("nuslerp", {"weights": [0.5, 2.0], "unit": "column"})]),
    "model stock by row": (THREE, [Step("model_stock", {"filter_wise": True}), SCALE]),
    "model stock of two": (TWO, [Step("model_stock", {"filter_wise": True, "clamp_t": False})]),
    "arcee fusion": (TWO, [Step("arcee_fusion")]),
    "ramplus": (THREE, [Step("ramplus", {"scope": "tensor", "alpha": 2.0, **LIMIT}), SCALE]),
}
"""By name: experts and steps."""


def plan_of(models: Mapping[str, Model], chain: str, dtype: str = "BF16") -> Plan:
    return plan_for(models, CHAINS[chain][1], dtype=dtype)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    ("dtype", "written"),
    [(torch.bfloat16, "BF16"), (torch.float16, "F32"), (torch.float32, "F16")],
)
def test_the_bytes_are_those_of_the_specification(
    tmp_path: Path, chain: str, dtype: torch.dtype, written: str
) -> None:
    models = save_models(tmp_path, SHAPES, dtype=dtype, experts=CHAINS[chain][0])
    plan = plan_of(models, chain, written)
    assert all(compile_job(job, plan.seed) is not None for job in plan.jobs)
    run(plan, models, tmp_path / "out", threads=2)
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


@pytest.mark.parametrize("keep", [0, 1 << 30])
@pytest.mark.parametrize("tile", [1 << 12, 1 << 14, 1 << 20])
@pytest.mark.parametrize("chain", CHAINS)
def test_tiles_of_any_size_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, tile: int, keep: int
) -> None:
    models = save_models(tmp_path, SHAPES, experts=CHAINS[chain][0])
    plan = plan_of(models, chain)
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: tile)
    monkeypatch.setattr("mergekit_lite.engine.local.keep_for", lambda plan, options: keep)
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> set[Kernel]:
    """The kernels that rows call while a test runs."""
    seen: set[Kernel] = set()
    bind = Kernel.on

    def on(kernel: Kernel, *args: Any) -> Callable[..., None]:
        if kernel.maker[0] != "sha256":  # which is no row's
            seen.add(kernel)
        return bind(kernel, *args)

    monkeypatch.setattr(Kernel, "on", on)
    return seen


@pytest.mark.parametrize("chain", CHAINS)
def test_what_is_called_has_been_wanted(tmp_path: Path, called: set[Kernel], chain: str) -> None:
    """Else it would be compiled in the midst of a run."""
    models = save_models(tmp_path, {"w": (300, 400)}, experts=CHAINS[chain][0])
    plan = plan_of(models, chain)
    wanted = wanted_kernels(plan, models)
    run(plan, models, tmp_path / "out")
    assert called
    assert called <= set(wanted)


def test_changes_of_the_whole_model_are_counted_in_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: set[Kernel]
) -> None:
    folder = tmp_path / "cache"  # where no earlier run has left its counts
    monkeypatch.setattr("mergekit_lite.plan.remembered.cache_folder", lambda part: folder / part)
    models = save_models(tmp_path, {"v": (77,), "w": (301, 513)}, experts=THREE)
    plan = plan_for(models, [Step("ramplus", {"alpha": 2.0, **LIMIT})])
    assert torch_bytes(plan) == 0
    run(plan, models, tmp_path / "out", threads=2)
    assert changes_tile in called
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    folder = tmp_path / "another"
    run(plan, models, tmp_path / "torch")
    assert same_bytes(output(tmp_path / "out"), output(tmp_path / "torch"))


@pytest.mark.parametrize("source", ["base", "b"])
@pytest.mark.parametrize("chain", CHAINS)
def test_what_is_not_finite_is_named_and_may_be_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, source: str
) -> None:
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: 1 << 14)
    generator = torch.Generator().manual_seed(0)
    names = ("base", *CHAINS[chain][0])
    given = {name: torch.randn(100, 1000, generator=generator).half() for name in names}
    broken = torch.tensor([np.nan, np.inf, -np.inf]).half()
    given[source].view(-1)[[3, 70_000, 99_999]] = broken
    models = one_tensor(given.pop("base"), given)
    with pytest.raises(DataError) as caught:
        run(plan_of(models, chain, "F16"), models, tmp_path / "out")
    (problem,) = caught.value.problems
    assert problem.where == f"{source}: w"
    assert problem.what == "3 of 100,000 entries are NaN or infinite"
    run(plan_of(models, chain, "F16"), models, tmp_path / "allowed", allow_nonfinite=True)
    assert output(tmp_path / "allowed")["w"].shape == (100, 1000)


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if chain != "arcee fusion"])
def test_after_a_transform_they_are_left_to_torch(tmp_path: Path, chain: str) -> None:
    experts, steps = CHAINS[chain]
    models = save_models(tmp_path, {"w": (40, 30)}, experts=experts)
    plan = plan_for(models, [*each("dare", {"density": 0.5}, experts), *steps])
    assert compile_job(plan.jobs[0], plan.seed) is None
    run(plan, models, tmp_path / "out")
    assert same_bytes(output(tmp_path / "out"), expected(plan, models))
