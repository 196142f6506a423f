"""Stores end to end: packed, listed, made models again and merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api, patching, storing
from mergekit_lite.errors import RecipeError
from tests.checkpoints import perturbed, read_weights, write_weights
from tests.patches.stores import deltas, made

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("emr", {}),
    ("emr", {"dtype": "float32"}),
    ("tall_mask", {}),
    ("t_switch", {}),
    ("t_switch", {"keep": 0.3, "form": "masks"}),
    ("tsv_compress", {"fraction": 0.2}),
]


@pytest.mark.parametrize(("method", "params"), METHODS)
def test_a_task_is_base_plus_decoded(
    method: str, params: dict[str, Any], tmp_path: Path, base_folder: Path, experts: dict[str, str]
) -> None:
    file = made(tmp_path, experts, base_folder, method=method, **params)
    told = storing.summary(file)
    assert told.file_bytes == file.stat().st_size
    base = read_weights(base_folder)
    for task, folder in experts.items():
        storing.materialize(file, task, tmp_path / task, base=str(base_folder))
        tuned, result = read_weights(Path(folder)), read_weights(tmp_path / task)
        added = deltas(f"{file}#{task}")
        missed = total = 0.0
        for name, value in base.items():
            before = value.float()
            gap = tuned[name].float() - before
            total += float(gap.double().square().sum())
            if name in added:
                wanted = torch.where(added[name] == 0, before, before + added[name])
                assert torch.equal(result[name], wanted.bfloat16()), name
                missed += float((gap - added[name]).double().square().sum())
            else:
                assert torch.equal(result[name], tuned[name]), name
        assert told.tasks[task].norm == pytest.approx(total**0.5, rel=1e-4)
        assert told.tasks[task].error == pytest.approx((missed / total) ** 0.5, rel=1e-4)


def test_emr_scales_keep_the_sum_of_magnitudes_of_the_model(
    store: Path, base_folder: Path, experts: dict[str, str]
) -> None:
    base = read_weights(base_folder)
    for task, folder in experts.items():
        tuned = read_weights(Path(folder))
        wanted = sum((tuned[n].float() - v.float()).abs().double().sum() for n, v in base.items())
        got = sum(value.abs().double().sum() for value in deltas(f"{store}#{task}").values())
        assert float(got) == pytest.approx(float(wanted), rel=1e-5)


def test_exact_sizes(tmp_path: Path, base_folder: Path, experts: dict[str, str]) -> None:
    """A vector of 16 bits for all, and a bit for each entry of each task."""
    entries = sum(value.numel() for value in read_weights(base_folder).values())
    masks = sum(-(-value.numel() // 8) for value in read_weights(base_folder).values())
    three = {**experts, "third": str(perturbed(base_folder, tmp_path / "x", seed=5, scale=0.02))}
    for method in ("emr", "tall_mask"):
        file = made(tmp_path, three, base_folder, method, method=method)
        told = storing.summary(file)
        assert told.shared == 2 * entries
        assert [task.stored for task in told.tasks.values()] == [masks] * 3
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert told.file_bytes == header + 2 * entries + 3 * masks


def test_the_same_store_every_time(
    tmp_path: Path, base_folder: Path, experts: dict[str, str]
) -> None:
    for method in ("emr", "t_switch", "tsv_compress"):
        one, other = (
            made(tmp_path, experts, base_folder, f"{method}{n}", method=method) for n in (1, 2)
        )
        assert one.read_bytes() == other.read_bytes()
        assert str(tmp_path).encode() not in one.read_bytes()
    assert len(list(tmp_path.iterdir())) == 6


def test_t_switch_is_the_patch_of_each_task(
    tmp_path: Path, base_folder: Path, experts: dict[str, str]
) -> None:
    file = made(tmp_path, experts, base_folder, method="t_switch", keep=0.2)
    for task, folder in experts.items():
        patch = tmp_path / f"{task}.safetensors"
        patching.compress(folder, str(base_folder), patch, keep=0.2, scale="l2")
        alone, together = deltas(str(patch)), deltas(f"{file}#{task}")
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[name], together[name]) for name in alone)


STEPS: list[list[Any]] = [
    [{"task_arithmetic": {"weights": {"math": 0.5, "code": 0.7}}}],
    [{"magnitude": {"density": 0.3, "scope": "model"}}, "task_arithmetic"],
    ["tsv_merge"],
]


@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize("method", ["emr", "tsv_compress"])
def test_tasks_merge_as_what_they_decode_to(
    method: str, steps: list[Any], tmp_path: Path, base_folder: Path, experts: dict[str, str]
) -> None:
    """An fp32 base of zeros makes an expert its own difference, exactly."""
    zeros = {name: torch.zeros_like(v).float() for name, v in read_weights(base_folder).items()}
    base = shutil.copytree(base_folder, tmp_path / "zero")
    write_weights(base, zeros)
    tuned = {}
    for name, folder in experts.items():
        pairs = read_weights(Path(folder)), read_weights(base_folder)
        gaps = {key: value.float() - pairs[1][key].float() for key, value in pairs[0].items()}
        tuned[name] = str(shutil.copytree(base, tmp_path / name))
        write_weights(Path(tuned[name]), gaps)
    file = made(tmp_path, tuned, base, method=method)
    dense = {}
    for name in experts:
        dense[name] = str(shutil.copytree(base, tmp_path / f"{name}-dense"))
        whole = read_weights(Path(tuned[name])) | deltas(f"{file}#{name}")
        write_weights(Path(dense[name]), whole)
    packed = {name: {"store": str(file), "task": name} for name in experts}
    recipe = {"base": str(base), "steps": steps}
    api.run({**recipe, "experts": packed}, tmp_path / "packed")
    api.run({**recipe, "experts": dense}, tmp_path / "dense")
    left, right = read_weights(tmp_path / "packed"), read_weights(tmp_path / "dense")
    assert any(value.abs().max() > 0 for value in left.values())
    for name, value in right.items():
        assert torch.equal(left[name], value), name


def test_tasks_of_one_store_have_statistics_of_their_own(
    base_folder: Path, experts: dict[str, str], tmp_path: Path
) -> None:
    """What is remembered of the whole model is not taken for another task of the same file."""
    large = perturbed(base_folder, tmp_path / "large", seed=8, scale=0.5)
    store = made(tmp_path, {"math": experts["math"], "large": str(large)}, base_folder)
    base = read_weights(base_folder)
    for name in ("large", "math"):
        recipe = {
            "base": str(base_folder),
            "experts": {"one": {"store": str(store), "task": name}},
            "steps": [{"magnitude": {"density": 0.1, "scope": "model"}}, "task_arithmetic"],
        }
        api.run(recipe, tmp_path / f"in-{name}")
        result, added = read_weights(tmp_path / f"in-{name}"), deltas(f"{store}#{name}")
        magnitudes = torch.cat([value.flatten().abs() for value in added.values()])
        limit = magnitudes.sort(descending=True).values[int(0.1 * magnitudes.numel()) - 1]
        for key, value in added.items():
            wanted = torch.where(value.abs() > limit, value, 0)
            sure = value.abs() != limit
            merged = (base[key].float() + wanted).bfloat16()
            assert torch.equal(result[key][sure], merged[sure]), (name, key)


def test_two_tasks_of_one_store_are_no_repeats(
    store: Path, base_folder: Path, experts: dict[str, str]
) -> None:
    recipe = {
        "base": str(base_folder),
        "experts": {name: {"store": str(store)} for name in experts},
        "steps": ["task_arithmetic"],
    }
    plan = api.plan(recipe)
    assert [source.reference for source in plan.inputs.values()][1:] == [
        f"{store}#{name}" for name in experts
    ]
    assert not [text for text in plan.warnings if "same model" in text]
    assert api.open_inputs(plan)["code"].task == "code"


def test_the_experts_of_a_recipe(
    store: Path, base_folder: Path, experts: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "base").symlink_to(base_folder)
    told = {
        "base": "./base",
        "experts": {name: {"model": model, "weight": 0.3} for name, model in experts.items()},
        "steps": [{"ties": {"density": 0.2}}],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(told))
    storing.pack_recipe(recipe, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == store.read_bytes()
    told["experts"]["third"] = {"store": str(store), "task": "math"}  # type: ignore[index]
    recipe.write_text(json.dumps(told))
    with pytest.raises(RecipeError, match="the expert `third` is no whole model"):
        storing.pack_recipe(recipe, tmp_path / "third.safetensors")
