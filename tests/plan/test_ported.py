"""Patches that are carried to a new base: what configs and headers say about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.build import build
from mergekit_lite.plan.ported import pairs_of
from mergekit_lite.plan.types import Plan
from tests.plan.hollow import llama_config, recipe, write, write_adapter

MODELS = "base: base\nexperts: {math: {model: math}, code: {model: code}}\n"
PATCH = "{port_patch: {from: math, old_base: code}}"


def plan(root: Path, steps: str, models: str = MODELS, more: str = "") -> Plan:
    return build(recipe(root, f"{models}steps: [{steps}]\n{more}"))


def test_a_patch_is_known_by_its_models(root: Path) -> None:
    rules = "rules: [{match: {layers: 0}, steps: [{port_patch: {from: code, old_base: math}}]}]"
    assert pairs_of(plan(root, PATCH, more=rules).recipe) == [("math", "code"), ("code", "math")]
    assert pairs_of(plan(root, "task_arithmetic").recipe) == []
    assert "port_patch" not in " ".join(plan(root, PATCH).warnings)


@pytest.mark.parametrize("model", ["math", "code"])
def test_other_positions_are_refused(root: Path, model: str) -> None:
    write(root / "base", config=llama_config(rope_theta=10000.0))
    write(root / model, config=llama_config(rope_theta=500000.0))
    with pytest.raises(RecipeError) as caught:
        plan(root, PATCH)
    told = f"`{model}` has rope_theta 500000.0 (base 10000.0)"
    assert [told in problem.what for problem in caught.value.problems] == [True]
    assert caught.value.problems[0].where.startswith("recipe.yaml:3:")
    assert "weights 1 and -1" in caught.value.problems[0].hint
    plan(root, "{task_arithmetic: {weights: {math: 1, code: -1}}}")


def test_an_adapter_has_no_old_base(root: Path) -> None:
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    models = "base: base\nexperts: {math: {lora: lora}, code: {model: code}}\n"
    with pytest.raises(RecipeError, match="`math` is an adapter, which is a difference already"):
        plan(root, PATCH, models)
    alone = "base: base\nexperts: {math: {lora: lora}}\n"
    assert plan(root, "{port_patch: {from: math}}", alone).jobs


def test_a_model_without_its_old_base_is_mentioned(root: Path) -> None:
    one = "base: base\nexperts: {math: {model: math}}\n"
    (warning,) = plan(root, "{port_patch: {from: math}}", one).warnings
    assert "`math` is a model: without `old_base`" in warning
