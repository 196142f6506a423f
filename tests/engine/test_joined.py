"""Adapters that are added up in one product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite.engine.joined import JoinedRead, joined
from mergekit_lite.errors import DataError
from mergekit_lite.ops import merge, registry
from mergekit_lite.plan.types import Job, Step
from mergekit_lite.sources import Model
from mergekit_lite.sources.resolve import resolve
from tests.engine.plans import output, run, same_bytes, save_models
from tests.engine.test_lora import RANK, SHAPES, TOUCHED, low_rank, plan_with, save_adapter

WEIGHTS = [0.5, -1.5, 0.25]
NAMES = ("one", "two", "three")


def with_adapters(folder: Path, *, dense: bool = False) -> dict[str, Model]:
    models = save_models(folder, SHAPES, experts=["dense"] if dense else [], dtype=torch.float32)
    for seed, name in enumerate(NAMES):
        save_adapter(folder / name, seed=seed)
        models[name] = resolve(name, relative_to=folder)
    return models


def side_by_side(models: dict[str, Model], name: str, weights: list[float]) -> torch.Tensor:
    """Return the sum of all ranks of all adapters in order, each product rounded to fp32."""
    total = torch.zeros(SHAPES[name])
    for expert, weight in zip(NAMES, weights, strict=True):
        adapter = models[expert].adapter
        assert adapter is not None
        stored = load_file(models[expert].root / "adapter_model.safetensors")
        found = adapter.factors[name]
        a, b = stored[found.a].float(), stored[found.b].float()
        b = b * (torch.tensor(weight) * torch.tensor(found.scale))
        for k in range(RANK):
            total = total + b[:, k : k + 1] * a[k : k + 1]
    return total


@pytest.mark.parametrize("jit", ["1", "0"])
@pytest.mark.parametrize("tile", [1 << 12, 1 << 18])
def test_a_sum_of_adapters_adds_all_ranks_in_the_order_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str, tile: int
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: tile)
    models = with_adapters(tmp_path)
    params = {"weights": WEIGHTS, "lambda": 0.5}
    report = run(plan_with(models, [Step("task_arithmetic", params)]), models, tmp_path / "out")
    base = load_file(models["base"].root)
    wanted = {name: base[name] for name in SHAPES}
    for name in TOUCHED:
        wanted[name] = base[name] + side_by_side(models, name, WEIGHTS) * 0.5
    got = output(tmp_path / "out")
    assert same_bytes(got, {name: value.bfloat16() for name, value in wanted.items()})
    for expert in NAMES:
        squares = [low_rank(models[expert], n).double().square().sum() for n in TOUCHED]
        assert report.inputs[expert].matched == report.inputs[expert].changed == 2
        assert report.inputs[expert].delta_norm == pytest.approx(float(sum(squares)) ** 0.5)


def test_a_mean_and_a_dense_expert(tmp_path: Path) -> None:
    for dense in (False, True):
        folder = tmp_path / str(dense)
        folder.mkdir()
        models = with_adapters(folder, dense=dense)
        weights = [1.0] * dense + [1.0, 2.0, 1.0]
        steps = [Step("task_arithmetic", {"weights": weights, "normalize": True})]
        run(plan_with(models, steps), models, folder / "out")
        base = load_file(models["base"].root)
        got = output(folder / "out")
        for name in TOUCHED:
            total = side_by_side(models, name, [1.0, 2.0, 1.0])
            if dense:
                total = total + (load_file(models["dense"].root)[name] - base[name])
            wanted = base[name] + total / sum(weights)
            torch.testing.assert_close(got[name].float(), wanted, rtol=1e-2, atol=1e-5)


def test_which_rows_are_joined(tmp_path: Path) -> None:
    models = with_adapters(tmp_path, dense=True)

    def made(*steps: Step) -> Job:
        return joined(plan_with(models, list(steps)).jobs[0])

    row = made(Step("task_arithmetic", {"weights": [1.0, 2.0, 3.0, 4.0]}))
    assert [read.source for read in row.reads] == ["dense", "one+two+three"]
    assert row.steps[0].params["weights"] == [1.0, 1.0]
    assert isinstance(row.reads[1], JoinedRead)
    assert [weight for _, weight in row.reads[1].parts] == [2.0, 3.0, 4.0]
    for steps in (
        [Step("task_arithmetic", {"weights": [1.0] * 4, "normalize": True})],
        [Step("magnitude", {"density": 0.5}, "one"), Step("task_arithmetic")],
        [Step("sign_consensus")],
        [Step("linear")],
        [Step("task_arithmetic"), Step("svc")],
        [Step("task_arithmetic"), Step("lines")],
        [Step("task_arithmetic"), Step("scale"), Step("svc")],
    ):
        assert not any(isinstance(read, JoinedRead) for read in made(*steps).reads)


@pytest.mark.parametrize("post", sorted(n for n, s in registry().items() if s.kind == "post"))
def test_posts_after_a_sum_of_adapters_see_all_of_them(tmp_path: Path, post: str) -> None:
    models = with_adapters(tmp_path)
    params = {"scale": {"lambda": 0.5}, "lines": {"alpha": 0.25}}.get(post, {})
    steps = [Step("task_arithmetic", {"weights": [1.0, 1.0, 1.0]}), Step(post, params)]
    run(plan_with(models, steps), models, tmp_path / "out")
    base, got = load_file(models["base"].root), output(tmp_path / "out")
    for name in TOUCHED:
        experts = {expert: base[name] + low_rank(models[expert], name) for expert in NAMES}
        wanted = merge(base[name], experts, steps, name=name)
        plain = merge(base[name], experts, steps[:1], name=name)
        torch.testing.assert_close(got[name].float(), wanted, rtol=1e-2, atol=1e-4)
        assert float((wanted - plain).abs().max()) > 1e-2


def test_of_joined_adapters_the_broken_one_is_named(tmp_path: Path) -> None:
    models = with_adapters(tmp_path)
    file = tmp_path / "two" / "adapter_model.safetensors"
    stored = load_file(file)
    stored["base_model.model.up.lora_A.weight"][0, 0] = float("nan")
    save_file(stored, file)
    with pytest.raises(DataError) as caught:
        run(plan_with(models, [Step("task_arithmetic")]), models, tmp_path / "out")
    assert [problem.where for problem in caught.value.problems] == ["two: up.weight"]
