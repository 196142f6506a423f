"""Ops that look at the whole model, run as recipes run them, against all tensors as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite.checkpoint import layer_of
from mergekit_lite.engine.known import load_known, told
from mergekit_lite.ops import merge_tensors
from mergekit_lite.plan.types import Plan, Step
from mergekit_lite.sources import Model
from tests.engine.plans import each, output, plan_for, run, save_models

SHAPES = {
    "model.embed": (50, 8),
    "model.layers.0.w": (40, 61),
    "model.layers.1.w": (4097,),
    "model.layers.2.w": (9, 9, 9),
}


@pytest.fixture(autouse=True)
def no_memory_of_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setattr("mergekit_lite.plan.remembered.cache_folder", lambda part: folder / part)


def in_layers(plan: Plan, layers: int) -> Plan:
    """Return a plan whose rows know their layers."""
    jobs = tuple(replace(job, layer=layer_of(job.name)) for job in plan.jobs)
    return replace(plan, jobs=jobs, layers=layers)


def stored(models: Mapping[str, Model]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(model.root) for name, model in models.items()}


def as_one(models: Mapping[str, Model], op: str, params: Mapping[str, Any]) -> torch.Tensor:
    """Return what an op makes of all tensors, laid end to end in the plan's order."""
    tensors = stored(models)
    names = list(models["base"].header.tensors)
    flat = {
        model: torch.cat([own[name].flatten().float() for name in names])
        for model, own in tensors.items()
    }
    base = flat.pop("base")
    deltas = {expert: value - base for expert, value in flat.items()}
    return merge_tensors(op, deltas, base=base, **params)


CASES: list[tuple[str, dict[str, Any], list[Step]]] = [
    ("pcb", {"ratio": 0.2}, [Step("pcb", {"ratio": 0.2})]),
    ("tatr", {"quantile": 0.9}, [Step("tatr", {"quantile": 0.9})]),
    ("ramplus", {"epsilon": 0.002}, [Step("ramplus", {"epsilon": 0.002})]),
    (
        "localize_and_stitch",
        {"density": 0.1},
        [*each("graft", {"density": 0.1}), Step("stitch"), Step("scale")],
    ),
    (
        "sft_compose",
        {"count": 500},
        [*each("magnitude", {"count": 500, "scope": "model"}), Step("task_arithmetic")],
    ),
    (
        "norm_share",
        {"scope": "model", "share": 0.6},
        [*each("norm_share", {"scope": "model", "share": 0.6}), Step("task_arithmetic")],
    ),
    (
        "deviation",
        {"scope": "model", "factor": 1.5},
        [*each("deviation", {"scope": "model", "factor": 1.5}), Step("task_arithmetic")],
    ),
    (
        "ties",
        {"scope": "model", "tie_mode": "official", "zero_sign": "majority", "elect": "normmass"},
        [
            *each("magnitude", {"scope": "model", "tie_mode": "official"}),
            Step("sign_consensus", {"zero_sign": "majority", "elect": "normmass"}),
            Step("scale"),
        ],
    ),
]


@pytest.mark.parametrize("jit", ["1", "0"])
@pytest.mark.parametrize(("op", "params", "steps"), CASES, ids=[case[0] for case in CASES])
def test_a_merge_is_that_of_all_tensors_as_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    params: dict[str, Any],
    steps: list[Step],
    jit: str,
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    models = save_models(tmp_path, SHAPES, dtype=torch.float32)
    plan = plan_for(models, steps, dtype="F32")
    run(plan, models, tmp_path / "out", threads=2)
    got = output(tmp_path / "out")
    merged = torch.cat([got[name].flatten() for name in models["base"].header.tensors])
    expected = as_one(models, op, params)
    assert not torch.equal(merged, as_one(models, "task_arithmetic", {"lambda": 0.0}))
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-7)


def test_a_count_beyond_a_tensor_is_still_one_of_the_model(tmp_path: Path) -> None:
    """More entries than the smallest tensor has, and once more than the model has."""
    models = save_models(tmp_path, SHAPES, dtype=torch.float32, experts=["math"])
    for count in (900, 10**9):
        trim = each("magnitude", {"count": count, "scope": "model"}, ["math"])
        plan = plan_for(models, [*trim, Step("task_arithmetic")], dtype="F32")
        run(plan, models, tmp_path / f"out{count}")
        got, tensors = output(tmp_path / f"out{count}"), stored(models)
        base, math = tensors["base"], tensors["math"]
        if count == 900:
            assert sum(int((got[name] != base[name]).sum()) for name in base) == 900
        else:
            assert all(torch.equal(got[n], base[n] + (math[n] - base[n])) for n in base)


def lines_plan(models: Mapping[str, Model], **params: Any) -> Plan:
    steps = [Step("task_arithmetic", {"weights": [0.5] * 3}), Step("lines", params)]
    return in_layers(plan_for(models, steps, dtype="F32"), 3)


def test_lines_scales_with_depth_and_starts_at_an_average(tmp_path: Path) -> None:
    models = save_models(tmp_path, SHAPES, dtype=torch.float32)
    run(lines_plan(models), models, tmp_path / "out")
    got, tensors = output(tmp_path / "out"), stored(models)
    base = tensors.pop("base")
    # The merged task vector is half the sum, so alpha is 2/3 and beta 1/3.
    expected = {
        "model.embed": 2 / 3,
        "model.layers.0.w": 2 / 3,
        "model.layers.1.w": 5 / 6,
        "model.layers.2.w": 1.0,
    }
    for name, factor in expected.items():
        half = 0.5 * sum(own[name] - base[name] for own in tensors.values())
        torch.testing.assert_close(got[name], base[name] + factor * half, rtol=1e-5, atol=1e-6)


def test_lines_counts_the_layers_of_each_stack(tmp_path: Path) -> None:
    shapes = {f"encoder.layer.{i}.w": (5, 4) for i in range(2)}
    shapes |= {f"decoder.layers.{i}.w": (5, 4) for i in range(5)}
    models = save_models(tmp_path, shapes, dtype=torch.float32, experts=["math"])
    steps = [Step("task_arithmetic"), Step("lines", {"alpha": 0.0, "beta": 1.0})]
    run(in_layers(plan_for(models, steps, dtype="F32"), 5), models, tmp_path / "out")
    got, tensors = output(tmp_path / "out"), stored(models)
    base, math = tensors["base"], tensors["math"]
    for name, factor in {"encoder.layer.1.w": 1.0, "decoder.layers.1.w": 0.25}.items():
        expected = base[name] + factor * (math[name] - base[name])
        torch.testing.assert_close(got[name], expected, rtol=1e-5, atol=1e-6)


def test_a_split_by_conflict_says_which_layers_it_has_kept(tmp_path: Path) -> None:
    models = save_models(tmp_path, SHAPES, dtype=torch.float32, experts=["math", "code"])
    tensors = stored(models)
    # Layer 2 is torn apart, layer 0 not at all.
    path = Path(models["code"].root)
    code = dict(tensors["code"])
    for name, sign in (("model.layers.0.w", 1.0), ("model.layers.2.w", -1.0)):
        code[name] = tensors["base"][name] + sign * (tensors["math"][name] - tensors["base"][name])
    save_file(code, path)
    step = Step("mediator_split", {"keep": "math", "density": 1.0})
    plan = in_layers(plan_for(models, [step], dtype="F32"), 3)
    report = run(plan, models, tmp_path / "out")
    split = report.found["mediator_split"]
    assert {layer: part["is"] for layer, part in split.items()} == {
        "0": "merged", "1": "merged", "2": "routed",
    }  # fmt: skip
    assert split["0"]["conflict"] == 0
    assert split["2"]["conflict"] > 0.95  # the smallest changes are lost in rounding
    got = output(tmp_path / "out")
    torch.testing.assert_close(got["model.layers.2.w"], tensors["math"]["model.layers.2.w"])
    torch.testing.assert_close(
        got["model.embed"], (tensors["math"]["model.embed"] + code["model.embed"]) / 2
    )
    assert told(plan, load_known(tmp_path / "out")) == dict(report.found)


def test_gradients_say_where_experts_disturb_one_another(tmp_path: Path) -> None:
    models = save_models(tmp_path, SHAPES, dtype=torch.float32, experts=["math", "code"])
    tensors = stored(models)
    generator = torch.Generator().manual_seed(3)
    gradients = {
        expert: {n: torch.rand(t.shape, generator=generator) for n, t in tensors["base"].items()}
        for expert in ("math", "code")
    }
    for expert, own in gradients.items():
        save_file(own, tmp_path / f"{expert}-gradients.safetensors")
    files = {expert: f"{expert}-gradients.safetensors" for expert in gradients}
    step = Step("tatr_gradient", {"file": files, "quantile": 0.9})
    plan = replace(plan_for(models, [step], dtype="F32"), folder=str(tmp_path))
    run(plan, models, tmp_path / "out")
    names = list(tensors["base"])
    disturbed = torch.cat(
        [
            (
                gradients["math"][n] * (tensors["code"][n] - tensors["base"][n]).abs()
                + gradients["code"][n] * (tensors["math"][n] - tensors["base"][n]).abs()
            ).flatten()
            for n in names
        ]
    )
    limit = disturbed.double().quantile(0.9)
    got = output(tmp_path / "out")
    total = torch.cat(
        [
            sum((tensors[e][n] - tensors["base"][n]) for e in gradients).flatten()  # type: ignore[attr-defined]
            for n in names
        ]
    )
    base = torch.cat([tensors["base"][n].flatten() for n in names])
    merged = torch.cat([got[n].flatten() for n in names])
    expected = base + torch.where(disturbed.double() >= limit, 0.0, total)
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6)
    # Other gradients are another question.
    save_file(gradients["code"], tmp_path / "math-gradients.safetensors")
    run(plan, models, tmp_path / "again")
    assert not torch.equal(
        torch.cat([output(tmp_path / "again")[n].flatten() for n in names]), merged
    )


def test_ops_that_ask_for_nothing_say_nothing(tmp_path: Path) -> None:
    models = save_models(tmp_path, {"w": (4, 4)})
    report = run(plan_for(models, [Step("task_arithmetic")]), models, tmp_path / "out")
    assert report.found == {}
    assert not (tmp_path / "out" / "statistics.json").exists()
