"""Adapters as experts, against the dense weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite.checkpoint import LoraFactors
from mergekit_lite.ops import get
from mergekit_lite.ops._chain import finish, merge
from mergekit_lite.plan.types import Job, Plan, Read, Step
from mergekit_lite.sources import Model
from mergekit_lite.sources.resolve import resolve
from tests.engine.plans import each, finished, output, run, same_bytes, save_models

SHAPES = {"up.weight": (96, 130), "down.weight": (130, 96), "norm.weight": (96,)}
TOUCHED = ("up.weight", "down.weight")
RANK, ALPHA = 5, 8.0


def save_adapter(folder: Path, *, transposed: bool = False, seed: int = 3) -> Path:
    """Write a LoRA on both matrices in PEFT's format."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in TOUCHED:
        tall, wide = SHAPES[name][::-1] if transposed else SHAPES[name]
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, wide, generator=generator)
        tensors[f"{prefix}.lora_B.weight"] = 0.01 * torch.randn(tall, RANK, generator=generator)
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["up", "down"],
        "fan_in_fan_out": transposed,
        "bias": "none",
    }
    save_file({k: v.bfloat16() for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def low_rank(model: Model, name: str) -> torch.Tensor:
    """Return scale * B @ A in the weight's orientation, ranks added one after the other."""
    assert model.adapter is not None
    stored = load_file(model.root / "adapter_model.safetensors")
    factors = model.adapter.factors[name]
    a, b = stored[factors.a].float(), stored[factors.b].float()
    left, right = (a.T, b.T) if factors.transpose else (b, a)
    total = torch.zeros(left.shape[0], right.shape[1])
    for k in range(RANK):
        total = total + left[:, k : k + 1] * right[k : k + 1]
    return total * torch.tensor(factors.scale)


def read_of(model: Model, source: str, name: str) -> Read:
    if model.adapter is None:
        return Read(source, name)
    found = model.adapter.factors.get(name)
    if found is None:
        return Read(source, "", zero=True)
    return Read(source, "", LoraFactors(found.a, found.b, found.scale, found.transpose))


def plan_with(models: Mapping[str, Model], steps: list[Step]) -> Plan:
    experts = [name for name in models if name != "base"]
    full = tuple(Step(s.op, {**get(s.op).defaults(), **s.params}, s.expert) for s in steps)
    jobs = [
        Job(
            name, "BF16", info.shape, 0, 0, "merge",
            tuple(read_of(models[e], e, name) for e in experts), Read("base", name), full,
        )
        for name, info in models["base"].header.tensors.items()
    ]  # fmt: skip
    return finished(models, jobs, "BF16", 1 << 40, 7)


def from_dense(plan: Plan, models: Mapping[str, Model], space: str) -> dict[str, torch.Tensor]:
    """Return the specification's result for the deltas, or weights, that adapters stand for."""
    stored = load_file(models["base"].root)
    result = {}
    for job in plan.jobs:
        base = stored[job.name]
        deltas = {}
        for read in job.reads:
            if read.zero:
                deltas[read.source] = torch.zeros(job.shape)
            elif read.lora:
                deltas[read.source] = low_rank(models[read.source], job.name)
            else:
                dense = load_file(models[read.source].root)[job.name]
                deltas[read.source] = dense.float() - base.float()
        if space == "weight":
            weights = {}
            for read in job.reads:
                dense = read.lora is None and not read.zero
                weights[read.source] = (
                    load_file(models[read.source].root)[job.name].float()
                    if dense
                    else base.float() + deltas[read.source]
                )
            merged = merge(base, weights, job.steps, name=job.name, seed=plan.seed)
        else:
            # On a base of zeros the chain returns the merged delta itself.
            zeros = torch.zeros(job.shape)
            merged = merge(zeros, deltas, job.steps, name=job.name, seed=plan.seed)
            merged = finish(base, merged, "delta")
        result[job.name] = merged.bfloat16()
    return result


CHAINS = {
    "ties": lambda names: [
        *each("magnitude", {"density": 0.3}, names),
        Step("sign_consensus", {"weights": [0.5] * len(names)}),
    ],
    "dare": lambda names: [*each("dare", {"density": 0.4}, names), Step("task_arithmetic")],
    "rows": lambda names: [*each("breadcrumbs", {"density": 0.4}, names), Step("task_arithmetic")],
    "linear": lambda names: [Step("linear", {"weights": [0.25] * len(names)})],
}


@pytest.mark.parametrize("jit", ["1", "0"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("chain", CHAINS)
def test_an_adapter_is_the_dense_delta_it_stands_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chain: str,
    transposed: bool,
    mixed: bool,
    jit: str,
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: 1 << 12)
    models = save_models(tmp_path, SHAPES, experts=["dense"] if mixed else [])
    save_adapter(tmp_path / "lora", transposed=transposed)
    models["lora"] = resolve("lora", relative_to=tmp_path)
    steps = CHAINS[chain]([name for name in models if name != "base"])
    plan = plan_with(models, steps)
    run(plan, models, tmp_path / "out", threads=2)
    wanted = from_dense(plan, models, get(steps[-1].op).space)
    assert same_bytes(output(tmp_path / "out"), wanted)


def test_the_delta_is_that_of_a_matrix_product(tmp_path: Path) -> None:
    """Orientation and scale, told by torch's own product and not by our order of additions."""
    for transposed in (False, True):
        folder = tmp_path / str(transposed)
        folder.mkdir()
        models = save_models(folder, SHAPES, experts=[], dtype=torch.float32)
        save_adapter(folder / "lora", transposed=transposed)
        models["lora"] = resolve("lora", relative_to=folder)
        run(plan_with(models, [Step("task_arithmetic")]), models, folder / "out")
        base = load_file(models["base"].root)
        factors = load_file(folder / "lora" / "adapter_model.safetensors")
        got = output(folder / "out")
        for name in TOUCHED:
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = (factors[f"{prefix}.lora_{x}.weight"].float() for x in "AB")
            delta = ALPHA / RANK * (b @ a)
            wanted = base[name] + (delta.T if transposed else delta)
            torch.testing.assert_close(got[name].float(), wanted, rtol=8e-3, atol=1e-4)
        assert torch.equal(got["norm.weight"], base["norm.weight"].bfloat16())


def test_what_an_adapter_gave_is_reported(tmp_path: Path) -> None:
    models = save_models(tmp_path, SHAPES, experts=[])
    save_adapter(tmp_path / "lora")
    models["lora"] = resolve("lora", relative_to=tmp_path)
    report = run(plan_with(models, [Step("task_arithmetic")]), models, tmp_path / "out")
    norm = sum(float(low_rank(models["lora"], n).double().square().sum()) for n in TOUCHED) ** 0.5
    assert report.inputs["lora"].matched == 2
    assert report.inputs["lora"].changed == 2
    assert report.inputs["lora"].delta_norm == pytest.approx(norm, rel=1e-4)
