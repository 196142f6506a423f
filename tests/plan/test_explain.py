"""Why a tensor is what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.build import build
from mergekit_lite.plan.explain import explain, explain_text
from tests.plan.hollow import recipe, write_adapter

Q0 = "model.layers.0.self_attn.q_proj.weight"
RECIPE = """base: base
experts: {math: {model: math, weight: 0.5}, code: {model: code}, tuned: {lora: lora}}
steps: [{ties: {density: {math: 0.1, default: 0.3}}}]
rules:
  - {match: {layers: 0}, take: code}
  - {match: {role: attention}, set: {density: 0.4}}
  - {match: {name: "*.0.*q_proj*"}, steps: [{magnitude: {density: 0.9}}, task_arithmetic]}
  - {match: lm_head.weight, drop: true}
"""


def explained(root: Path, tensor: str) -> dict[str, Any]:
    if not (root / "lora").exists():
        write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    loaded = recipe(root, RECIPE)
    return explain(build(loaded), loaded, tensor)


def test_the_winner_and_all_that_matched_are_named(root: Path) -> None:
    found = explained(root, Q0)
    assert found["decision"] == {
        "where": "recipe.yaml:7:5",
        "why": "steps magnitude -> task_arithmetic for `*.0.*q_proj*`",
    }
    assert [(rule["where"], rule["won"]) for rule in found["rules"]] == [
        ("recipe.yaml:5:5", False),
        ("recipe.yaml:6:5", False),
        ("recipe.yaml:7:5", True),
    ]
    assert (found["layer"], found["layers"], found["role"]) == (0, 2, "attention.q")


def test_reads_name_file_and_offset_and_steps_name_resolved_values(root: Path) -> None:
    found = explained(root, Q0)
    base, math, code, lora_a, lora_b = found["reads"]
    assert (base["source"], base["part"], base["tensor"]) == ("base", "base", Q0)
    assert math["file"] == str(root / "math" / "model.safetensors")
    data = (root / "math" / "model.safetensors").read_bytes()
    assert 8 < math["offset"] < math["offset"] + math["bytes"] <= len(data)
    assert (code["dtype"], code["shape"]) == ("BF16", [32, 32])
    assert (lora_a["part"], lora_b["part"]) == ("lora A, scale 2", "lora B, scale 2")
    densities = {step.get("expert"): step["params"].get("density") for step in found["steps"]}
    assert densities == {"math": 0.4, "code": 0.4, "tuned": 0.4, None: None}
    assert found["steps"][-1]["weights"] == {"math": 0.5, "code": 1.0, "tuned": 1.0}
    assert found["writes"]["file"] == "model.safetensors"


def test_the_text_holds_it_all(root: Path) -> None:
    text = explain_text(explained(root, Q0))
    for part in (
        f"{Q0}  (attention.q, layer 0 of 2)",
        "won     recipe.yaml:7:5",
        "lost    recipe.yaml:5:5  take code for layers 0",
        "applied recipe.yaml:6:5  set density 0.4 for role attention",
        "magnitude of math; density 0.4",
        "weights math 0.5, code 1, tuned 1",
        "writes      model.safetensors at ",
    ):
        assert part in text


def test_zero_deltas_and_the_default_chain(root: Path) -> None:
    found = explained(root, "model.norm.weight")
    assert found["decision"]["why"] == "the recipe's steps"
    assert found["rules"] == []
    assert {"source": "tuned", "part": "input", "zero": True} in found["reads"]
    assert "tuned: nothing, its delta is zero" in explain_text(found)


def test_dropped_tensors_are_explained(root: Path) -> None:
    found = explained(root, "lm_head.weight")
    assert (found["kind"], found["writes"]) == ("drop", None)
    assert "the tensor is dropped" in explain_text(found)


def test_an_unknown_tensor_is_answered_with_the_nearest(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean `model\.norm\.weight`"):
        explained(root, "model.norms.weight")


def test_a_copy_says_why_it_is_one(root: Path) -> None:
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    text = "base: base\nexperts: {tuned: {lora: lora}}\nsteps: [task_arithmetic]"
    loaded = recipe(root, text)
    found = explain(build(loaded), loaded, "model.norm.weight")
    assert found["kind"] == "copy"
    assert "kind        copy: every delta is zero\n" in explain_text(found)
