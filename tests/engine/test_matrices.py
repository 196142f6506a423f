"""Ops on whole matrices in a run: what is planned, what is computed, what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite import api
from mergekit_lite.checkpoint import role_of
from mergekit_lite.errors import DataError
from mergekit_lite.ops import merge
from mergekit_lite.ops._chain import Stage
from mergekit_lite.plan.row_memory import TORCH_BYTES, whole_bytes
from tests.checkpoints import perturbed, read_weights, tiny_llama

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_llama(folder / "base")
    experts = {name: perturbed(base, folder / name, seed=at, scale=0.01) for at, name in
               enumerate(("math", "code"), 1)}  # fmt: skip
    return {"base": str(base), **{name: str(path) for name, path in experts.items()}}


def recipe(models: dict[str, str], *steps: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "base": models["base"],
        "experts": {"math": {"model": models["math"]}, "code": {"model": models["code"]}},
        "steps": list(steps),
        "output": {"dtype": "float32"},
    }


@pytest.mark.parametrize(
    "steps",
    [
        [{"tsv_merge": {"alpha": 1.5}}],
        [{"iso_cts": {}}],
        [{"magnitude": {"density": 0.5}}, {"task_arithmetic": {}}, {"svc": {"alpha": 0.1}}],
    ],
)
def test_a_run_is_the_specification(
    models: dict[str, str], tmp_path: Path, steps: list[dict[str, Any]]
) -> None:
    threads = torch.get_num_threads()
    for count in (1, 3):
        api.run(recipe(models, *steps), tmp_path / str(count), threads=count)
    result, again = (read_weights(tmp_path / str(count)) for count in (1, 3))
    base, math, code = (read_weights(Path(models[n])) for n in ("base", "math", "code"))
    chain = [Stage(op, params) for step in steps for op, params in step.items()]
    for name, value in base.items():
        expected = merge(
            value, {"math": math[name], "code": code[name]}, chain, name=name, role=role_of(name)
        )
        torch.testing.assert_close(result[name], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(result[name], again[name]), "threads changed bytes"
    assert torch.get_num_threads() == threads
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [threads]


def test_each_worker_computes_on_one_thread(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_lite.engine import torch_row

    found: set[tuple[int, int]] = set()
    apply = torch_row.apply_combine

    def watched(*given: Any) -> torch.Tensor:
        found.add((threading.get_ident(), torch.get_num_threads()))
        return apply(*given)

    monkeypatch.setattr(torch_row, "apply_combine", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        api.run(recipe(models, {"tsv_merge": {}}), tmp_path / "out", threads=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert {threads for _, threads in found} == {1}  # whatever the caller has


def test_only_matrices_are_taken_whole(models: dict[str, str]) -> None:
    plan = api.plan(recipe(models, {"iso_c": {"alpha": 2.0}}, {"svc": {}}))
    ops = {job.name: [step.op for step in job.steps] for job in plan.jobs}
    assert ops[Q] == ["iso_c", "svc"]
    assert ops["model.norm.weight"] == ops["model.embed_tokens.weight"] == ["task_arithmetic"]
    norm = next(job for job in plan.jobs if job.name == "model.norm.weight")
    assert norm.steps[0].params["lambda"] == 1.0  # alpha 2 over 2 experts
    assert norm.rule.endswith("`iso_c` leaves it to `task_arithmetic`")
    asked = api.plan(recipe(models, {"iso_c": {"embeddings": True}}))
    assert next(j for j in asked.jobs if "embed" in j.name).steps[0].op == "iso_c"


def test_the_estimate_counts_copies_and_factors(models: dict[str, str]) -> None:
    from mergekit_lite.ops import registry

    plan = api.plan(recipe(models, {"tsv_merge": {}}))
    job = next(job for job in plan.jobs if job.name == Q)
    copies = 6 * 4 * 32 * 32 + 3 * 2 * 32 * 32  # N + 4 in fp32, and three as stored in bf16
    factors = 64 * 32 * 32 + 16 * 32 * 32 + 16 * 32 * 32
    assert whole_bytes(job, registry()) == TORCH_BYTES + copies + factors


def test_the_estimated_time_counts_decompositions(models: dict[str, str]) -> None:
    from dataclasses import replace

    from mergekit_lite.plan.estimate import estimate

    def seconds(op: str) -> float:
        plan = api.plan(recipe(models, {op: {}}))
        large = [replace(job, shape=(2048, 2048)) for job in plan.jobs if job.name == Q]
        return estimate(replace(plan, jobs=tuple(large)), threads=1, refuse=False).seconds

    assert seconds("tsv_merge") > seconds("iso_c") > seconds("task_arithmetic") + 2


def test_nan_in_a_matrix_is_named(models: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    perturbed(Path(models["math"]), broken, seed=5, scale=0.01)
    file = broken / "model.safetensors"
    weights = load_file(file)
    weights[Q][3, 4] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    wanted = recipe({**models, "math": str(broken)}, {"tsv_merge": {}})
    with pytest.raises(DataError, match="1 of 1,024 entries are NaN"):
        api.run(wanted, tmp_path / "out")
    api.run(wanted, tmp_path / "out", allow_nonfinite=True)
    result = read_weights(tmp_path / "out")
    assert bool(result[Q].isnan().all())
    assert bool(result["model.norm.weight"].isfinite().all())
