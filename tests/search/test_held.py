"""What candidates become in memory is what runs write, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mergekit_lite
from mergekit_lite.engine.options import Options
from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.build import build, prepare
from mergekit_lite.quality.forward import Settings
from mergekit_lite.search.held import Held, held
from tests.calibrate.conftest import save_model


def plain(home: Path, steps: list[Any], dtype: str = "bfloat16", **more: Any) -> dict[str, Any]:
    experts = {name: {"model": str(home / name), "weight": 0.5} for name in ("one", "two")}
    return {
        "base": str(home / "base"),
        "experts": experts,
        "steps": steps,
        "output": {"dtype": dtype},
        **more,
    }


def require_same(model: Held, folder: Path) -> None:
    """Check that all weights of the model are those that a run has written."""
    weights = dict(model.skeleton.model.named_parameters())
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(weights.pop(name).detach(), tensor.float()), name
    assert list(weights) == []


CHAINS: list[list[Any]] = [
    [{"ties": {"density": 0.3}}],  # fused
    [{"ties": {"density": 0.3, "scope": "model"}}],  # asks the whole model
    [{"dare_ties": {"density": 0.6}}],  # random
    ["tsv_merge"],  # torch, whole matrices
    [{"linear": {"normalize": True}}],
]


@pytest.mark.parametrize("steps", CHAINS, ids=lambda steps: str(steps)[:24])
def test_candidates_are_what_runs_write(home: Path, tmp_path: Path, steps: list[Any]) -> None:
    rules = [{"match": {"layers": "1"}, "take": "one"}]
    first = mergekit_lite.load(plain(home, steps, rules=rules))
    second = mergekit_lite.load(plain(home, steps, rules=rules), ["experts.two.weight=0.875"])
    plan, models = prepare(first)
    model = held(plan, models, Settings(), Options(threads=1))
    try:
        assert model.merge(plan) == len(plan.jobs)
        mergekit_lite.run(plan, tmp_path / "first")
        require_same(model, tmp_path / "first")
        addresses = {n: p.data_ptr() for n, p in model.skeleton.model.named_parameters()}
        # Rows of layer 1 are copies, and the same in both.
        assert model.merge(build(second, models)) == sum(j.layer != 1 for j in plan.jobs)
        mergekit_lite.run(second, tmp_path / "second")
        require_same(model, tmp_path / "second")
        again = {n: p.data_ptr() for n, p in model.skeleton.model.named_parameters()}
        assert again == addresses, "weights are overwritten where they are"
        assert model.merge(build(second, models)) == 0 or "scope" in str(steps)
    finally:
        model.close()


def test_weights_that_are_stored_in_another_layout(tmp_path: Path) -> None:
    """Experts of a layer are stored one by one, and are one tensor in memory."""
    for name, seed in (("base", 0), ("one", 1), ("two", 2)):
        save_model(tmp_path / name, "mixtral", seed=seed)
    recipe = mergekit_lite.load(plain(tmp_path, ["task_arithmetic"], "float32"))
    other = mergekit_lite.load(plain(tmp_path, ["task_arithmetic"], "float32"), ["seed=1"])
    changed = mergekit_lite.load(
        plain(tmp_path, ["task_arithmetic"], "float32"), ["experts.one.weight=0.125"]
    )
    plan, models = prepare(recipe)
    model = held(plan, models, Settings(), Options(threads=1))
    try:
        for candidate in (recipe, other, changed):
            model.merge(build(candidate, models))
        mergekit_lite.run(changed, tmp_path / "out")
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        weights = dict(loaded.named_parameters())
        for name, parameter in model.skeleton.model.named_parameters():
            assert torch.equal(parameter, weights[name]), name
    finally:
        model.close()


def test_what_cannot_be_merged_into_memory_is_refused(home: Path) -> None:
    adapter = plain(home, ["task_arithmetic"])
    adapter["output"] = {"lora": {"rank": 2}}
    adapter["experts"] = {"one": {"model": str(home / "one")}}
    stage = {
        "inner": {
            "base": str(home / "base"),
            "experts": {"one": str(home / "one")},
            "steps": [{"ties": {"density": 0.5, "scope": "model"}}],
        }
    }
    staged = plain(home, ["task_arithmetic"], stages=stage)
    staged["experts"] = {"inner": "@inner"}
    for recipe, what in ((staged, "writes a stage"),):
        plan, models = prepare(mergekit_lite.load(recipe))
        model = held(plan, models, Settings(), Options(threads=1))
        with pytest.raises(RecipeError, match=what):
            model.merge(plan)
        model.close()
