"""NaN and infinity: told by model, tensor and count, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mergekit_lite.errors import DataError
from mergekit_lite.plan.types import Step
from tests.engine.memory_models import one_tensor
from tests.engine.plans import EXPERTS, each, expected, output, plan_for, run, save_models
from tests.engine.test_chains import CHAINS, MEAN

JIT = pytest.mark.parametrize("jit", ["1", "0"])
SIZE = 20_000
TWO_RANKINGS = [
    *each("magnitude", {"density": 0.7, "density_1d": None}),
    *each("breadcrumbs", {"density": 0.5, "gamma": 0.01, "unit": "tensor"}),
    MEAN,
]
STEPS = {
    **{name: CHAINS[name] for name in ("linear", "ties, norms too", "dare", "breadcrumbs by row")},
    "two rankings": TWO_RANKINGS,
    "slerp": [Step("slerp", {"t": 0.5})],
    "whole model": CHAINS["whole model"],
}


def tensors(chain: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("math", "code") if chain == "slerp" else EXPERTS
    return {name: torch.randn(SIZE, generator=generator) for name in ("base", *names)}


def merge(folder: Path, chain: str, given: dict[str, torch.Tensor], **options: object) -> Path:
    steps = STEPS[chain]
    base = given["base"]
    models = one_tensor(base, {k: v for k, v in given.items() if k != "base"})
    in_weights = steps[-1].op in ("linear", "slerp")
    plan = plan_for(models, steps, dtype="F32", needs_base=not in_weights)
    run(plan, models, folder, threads=1, **options)
    return folder


@JIT
@pytest.mark.parametrize("source", ["base", "code"])
@pytest.mark.parametrize("chain", [name for name in STEPS if name != "whole model"])
def test_a_broken_input_is_named_with_its_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str, source: str, jit: str
) -> None:
    if source == "base" and STEPS[chain][-1].op in ("linear", "slerp"):
        return  # these do not read the base
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: 1 << 12)
    given = tensors(chain)
    given[source][[3, 9000, 19_999]] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    with pytest.raises(DataError) as caught:
        merge(tmp_path / "out", chain, given)
    assert caught.value.exit_code == 3
    (problem,) = caught.value.problems
    assert problem.where == f"{source}: w"
    assert problem.what == "3 of 20,000 entries are NaN or infinite"
    assert "--allow-nonfinite" in problem.hint
    assert not (tmp_path / "out").exists()


def test_a_sweep_of_the_whole_model_finds_it_too(tmp_path: Path) -> None:
    given = tensors("whole model")
    given["code"][5] = float("nan")
    with pytest.raises(DataError, match="code: w"):
        merge(tmp_path / "out", "whole model", given)
    assert not (tmp_path / "out").exists()


@JIT
def test_all_broken_inputs_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    given = tensors("ties, norms too")
    given["base"][1], given["math"][2:4] = float("inf"), float("nan")
    with pytest.raises(DataError) as caught:
        merge(tmp_path / "out", "ties, norms too", given)
    found = {(p.where, p.what.split()[0]) for p in caught.value.problems}
    assert found == {("base: w", "1"), ("math: w", "2")}


@JIT
def test_a_result_that_does_not_fit_the_output_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    base = torch.ones(5000)
    expert = base.clone()
    expert[:2] = 60_000
    models = one_tensor(base, {"e": expert})
    plan = plan_for(models, [Step("task_arithmetic", {"weights": [2.0]})], dtype="F16")
    with pytest.raises(DataError) as caught:
        run(plan, models, tmp_path / "out")
    (problem,) = caught.value.problems
    assert (problem.where, problem.what) == ("w", "2 of 5,000 merged entries do not fit F16")
    assert "bfloat16" in problem.hint
    assert not (tmp_path / "out").exists()


@JIT
def test_they_may_pass_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    given = tensors("linear")
    given["code"][3] = float("nan")
    given["chat"][4] = float("inf")
    got = output(merge(tmp_path / "out", "linear", given, allow_nonfinite=True))["w"]
    assert bool(got[3].isnan())
    assert got[4] == float("inf")
    assert int((~got.isfinite()).sum()) == 2


@JIT
def test_a_healthy_model_is_unmoved_by_the_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jit: str
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", jit)
    models = save_models(tmp_path, {"w": (100, 40)})
    plan = plan_for(models, CHAINS["ties"])
    run(plan, models, tmp_path / "out", allow_nonfinite=True)
    assert torch.equal(output(tmp_path / "out")["w"], expected(plan, models)["w"])


def test_a_file_that_ends_early_is_told_and_nothing_stays(tmp_path: Path) -> None:
    models = save_models(tmp_path, {"w": (100, 40)})
    plan = plan_for(models, CHAINS["ties"])
    path = Path(models["code"].root)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"code\.safetensors"):
        run(plan, models, tmp_path / "out")
    assert not (tmp_path / "out").exists()
