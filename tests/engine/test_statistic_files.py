"""One statistic file an expert: what a plan says of them, and what a run makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite import api
from mergekit_lite.errors import DataError, RecipeError
from mergekit_lite.ops import merge_tensors
from tests.checkpoints import perturbed, read_weights, tiny_llama

Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
EMBED = "model.embed_tokens.weight"
FILES = {"math": "math.safetensors", "code": "code.safetensors"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    base = tiny_llama(tmp_path / "base", hidden=16, intermediate=24)
    for at, name in enumerate(("math", "code")):
        perturbed(base, tmp_path / name, seed=at + 1, scale=0.01)
    return tmp_path


def recipe(folder: Path, step: dict[str, Any], **more: Any) -> dict[str, Any]:
    experts = {name: {"model": str(folder / name)} for name in ("math", "code")}
    files = {name: str(folder / file) for name, file in FILES.items()}
    [(op, params)] = step.items()
    return {
        "schema_version": 1,
        "base": str(folder / "base"),
        "experts": experts,
        "steps": [{op: {"file": files, **params}}],
        "output": {"dtype": "float32"},
        **more,
    }


def write_grams(folder: Path, **odd: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """Write a Gram for every linear layer of both experts."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for expert, file in FILES.items():
        found[expert] = {}
        for name, value in read_weights(folder / "base").items():
            if value.dim() == 2 and name != EMBED:
                x = torch.randn(50, value.shape[1], generator=generator)
                found[expert][name] = x.T @ x / 50
        save_file({**found[expert], **(odd if expert == "code" else {})}, folder / file)
    return found


def write_fishers(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for expert, file in FILES.items():
        weights = read_weights(folder / "base")
        found[expert] = {n: torch.rand(v.shape, generator=generator) for n, v in weights.items()}
        save_file(found[expert], folder / file)
    return found


def deltas(folder: Path, name: str) -> list[torch.Tensor]:
    base = read_weights(folder / "base")[name].float()
    return [read_weights(folder / e)[name].float() - base for e in ("math", "code")]


@pytest.mark.parametrize("op", ["regmean", "lot"])
def test_a_regression_by_grams(models: Path, op: str) -> None:
    grams = write_grams(models)
    plan = api.plan(recipe(models, {op: {}}))
    ops = {job.name: job.steps[0].op for job in plan.jobs}
    assert ops[Q] == "regmean"
    assert ops[EMBED] == ops["model.norm.weight"] == "task_arithmetic"
    assert not any("statistic" in warning for warning in plan.warnings)
    api.run(plan, models / "out")
    base, result = read_weights(models / "base"), read_weights(models / "out")
    for name in (Q, DOWN):
        given = [grams[expert][name] for expert in FILES]
        merged = merge_tensors(op, deltas(models, name), base=base[name], calibration=given)
        torch.testing.assert_close(result[name], merged, atol=1e-6, rtol=1e-5)
    for name in (EMBED, "model.norm.weight"):
        mean = base[name].float() + sum(deltas(models, name)) / 2
        torch.testing.assert_close(result[name], mean, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_an_average_by_fishers(
    models: Path, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Statistics are cut like everything else.
    monkeypatch.setattr("mergekit_lite.plan.row_memory.TILE_ENTRIES", 128)
    fishers = write_fishers(models)
    api.run(recipe(models, {"fisher": {"normalize": normalize}}), models / "out")
    base, result = read_weights(models / "base"), read_weights(models / "out")
    for name, value in base.items():
        given = []
        for expert in FILES:
            every = torch.cat([f.double().flatten() for f in fishers[expert].values()])
            given.append(fishers[expert][name] / (float(every.norm()) if normalize else 1.0))
        merged = merge_tensors("fisher", deltas(models, name), base=value, calibration=given)
        torch.testing.assert_close(result[name], merged, atol=1e-6, rtol=1e-5)


def test_all_that_is_wrong_with_files_is_told_before_the_run(models: Path) -> None:
    write_grams(models, **{Q: torch.eye(7), DOWN: torch.eye(24).long()})
    (models / "math.safetensors").unlink()
    with pytest.raises(RecipeError) as caught:
        api.plan(recipe(models, {"regmean": {}}))
    assert "regmean.file: there is no" in str(caught.value)
    write = write_grams(models, **{Q: torch.eye(7), DOWN: torch.eye(24).long()})
    short = {name: gram for name, gram in write["math"].items() if "up_proj" not in name}
    save_file(short, models / "math.safetensors")
    with pytest.raises(RecipeError) as caught:
        api.plan(recipe(models, {"regmean": {}}))
    found = str(caught.value)
    assert f"`{Q}` 7x7 (`regmean` wants 16x16)" in found
    assert f"`{DOWN}` I64" in found
    assert "for `math`, lacks statistics: `model.layers.0.mlp.up_proj.weight`, " in found


def test_tensors_without_a_statistic_get_the_mean_and_a_warning(models: Path) -> None:
    grams = write_grams(models)
    for expert, file in FILES.items():
        save_file({n: g for n, g in grams[expert].items() if n != Q}, models / file)
    plan = api.plan(recipe(models, {"regmean": {}}))
    assert next(job for job in plan.jobs if job.name == Q).steps[0].op == "task_arithmetic"
    told = [warning for warning in plan.warnings if "no statistic file" in warning]
    assert len(told) == 1
    assert told[0].endswith(f"which get the mean: `{Q}`")


def test_files_of_another_model_are_refused(models: Path) -> None:
    for file in FILES.values():
        save_file({"encoder.weight": torch.eye(16)}, models / file)
    with pytest.raises(RecipeError, match=r"has no statistic for any tensor .* `encoder.weight`"):
        api.plan(recipe(models, {"regmean": {}}))


def test_every_expert_has_a_file_of_its_own(models: Path) -> None:
    write_grams(models)
    wanted = recipe(models, {"regmean": {}})
    one = str(models / "math.safetensors")
    wanted["steps"] = [{"regmean": {"file": one}}]
    with pytest.raises(RecipeError, match="names one file for several experts"):
        api.plan(wanted)
    wanted["steps"] = [{"regmean": {"file": {"math": one}}}]
    with pytest.raises(RecipeError, match="has no value for code"):
        api.plan(wanted)
    wanted["steps"] = [{"regmean": {"file": {"math": one, "cod": one}}}]
    with pytest.raises(RecipeError, match="there is no expert `cod`"):
        api.plan(wanted)


def test_one_expert_alone_may_name_its_file_plainly(models: Path) -> None:
    write_grams(models)
    wanted = recipe(models, {"regmean": {}})
    del wanted["experts"]["code"]
    wanted["steps"] = [{"regmean": {"file": str(models / "math.safetensors")}}]
    api.run(wanted, models / "out")
    expected = read_weights(models / "math")[Q].float()
    torch.testing.assert_close(read_weights(models / "out")[Q], expected, atol=1e-6, rtol=1e-5)


def test_nan_in_a_statistic_names_the_file(models: Path) -> None:
    broken = torch.eye(16)
    broken[2, 3] = float("nan")
    write_grams(models, **{Q: broken})
    with pytest.raises(DataError, match=f"`code.safetensors` holds NaN or infinity for `{Q}`"):
        api.run(recipe(models, {"regmean": {}}), models / "out")


def test_a_damaged_file_is_told_at_plan_time(models: Path) -> None:
    write_grams(models)
    (models / "code.safetensors").write_bytes(b"no header")
    with pytest.raises(RecipeError, match=r"`regmean.file`: .*code.safetensors"):
        api.plan(recipe(models, {"regmean": {}}))


def test_negative_weights_are_refused(models: Path) -> None:
    write_grams(models)
    wanted = recipe(models, {"regmean": {}})
    wanted["experts"]["math"]["weight"] = -1.0
    with pytest.raises(RecipeError, match="weights must not be negative"):
        api.plan(wanted)


def test_the_lock_pins_statistics_and_verify_rechecks_them(models: Path) -> None:
    from mergekit_lite.export.verify import verify
    from mergekit_lite.plan.lock import LOCK_FILE, read_lock

    write_grams(models)
    api.run(recipe(models, {"regmean": {}}), models / "out")
    pinned = read_lock(models / "out" / LOCK_FILE)["statistics"]
    assert sorted(Path(name).name for name in pinned) == sorted(FILES.values())
    assert verify(models / "out", inputs=True) == []
    write_fishers(models)
    assert len(verify(models / "out", inputs=True)) == 2


def test_an_interrupted_run_is_not_resumed_with_other_statistics(models: Path) -> None:
    from mergekit_lite.engine.journal import identities

    write_grams(models)
    plan = api.plan(recipe(models, {"regmean": {}}))
    before = identities(plan)
    write_fishers(models)
    after = identities(plan)
    changed = [name for name in before if before[name] != after[name]]
    assert sorted(Path(name).name for name in changed) == sorted(FILES.values())


def test_a_gram_that_is_none_is_told_with_the_tensor(models: Path) -> None:
    write_grams(models, **{Q: -5 * torch.eye(16)})
    with pytest.raises(DataError, match=r"`regmean` finds no solution") as caught:
        api.run(recipe(models, {"regmean": {}}), models / "out")
    assert Q in str(caught.value)
