"""Different experts: whose bytes lie where, how routers are made, and what the manifest says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mergekit_lite import api
from tests.moe.dense import apart, config, load, tensor, tokens

Dense = Callable[..., Path]


@pytest.fixture
def recipe(dense: Dense) -> dict[str, object]:
    """Two experts of a Llama, with random gates."""
    return {
        "base": str(dense("llama")),
        "experts": {
            "math": {"model": str(dense("llama", 1))},
            "code": {"model": str(dense("llama", 2))},
        },
        "moe": {"target": "mixtral", "gate": "random"},
    }


def test_experts_are_copied_and_the_rest_is_the_bases(
    dense: Dense, tmp_path: Path, recipe: dict[str, object]
) -> None:
    plan = api.plan(recipe)
    routers = [job.name for job in plan.jobs if "gate.weight" in job.name]
    assert len(routers) == 3
    # Expert copies never enter user space: every row of this model only moves bytes.
    assert {job.kind for job in plan.jobs} == {"copy"}
    out = tmp_path / "routed"
    api.run(recipe, out)
    for number, seed in enumerate((1, 2)):
        for ours, theirs in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
            mine = tensor(out, f"model.layers.1.block_sparse_moe.experts.{number}.{ours}.weight")
            assert torch.equal(
                mine, tensor(dense("llama", seed), f"model.layers.1.mlp.{theirs}.weight")
            )
    name = "model.layers.2.self_attn.q_proj.weight"
    assert torch.equal(tensor(out, name), tensor(dense("llama"), name))


def test_all_active_experts_without_routing_are_their_mean(
    dense: Dense, tmp_path: Path, recipe: dict[str, object]
) -> None:
    recipe["moe"] = {"experts_per_token": 2, "gate": "zeros"}
    out = tmp_path / "routed"
    api.run(recipe, out)
    model = load(out)
    seen: dict[str, torch.Tensor] = {}
    block = model.model.layers[0].mlp
    block.register_forward_hook(lambda m, args, result: seen.update(x=args[0], y=result))
    with torch.no_grad():
        model(tokens())
        x = seen["x"]
        both = []
        for seed in (1, 2):
            part = {
                p: tensor(dense("llama", seed), f"model.layers.0.mlp.{p}_proj.weight")
                for p in ("gate", "up", "down")
            }
            inner = torch.nn.functional.silu(x @ part["gate"].T) * (x @ part["up"].T)
            both.append(inner @ part["down"].T)
    found = seen["y"][0] if isinstance(seen["y"], tuple) else seen["y"]
    assert (found - (both[0] + both[1]) / 2).abs().max() < 1e-5


def test_the_rest_can_be_merged_by_any_method(
    dense: Dense, tmp_path: Path, recipe: dict[str, object]
) -> None:
    recipe["steps"] = ["linear"]
    out = tmp_path / "routed"
    api.run(recipe, out)
    name = "model.layers.2.self_attn.q_proj.weight"
    mean = (tensor(dense("llama", 1), name) + tensor(dense("llama", 2), name)) / 2
    assert (tensor(out, name) - mean).abs().max() < 1e-6
    name = "model.layers.2.block_sparse_moe.experts.1.w2.weight"
    assert torch.equal(
        tensor(out, name), tensor(dense("llama", 2), "model.layers.2.mlp.down_proj.weight")
    )


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, recipe: dict[str, object]) -> None:
    for name in ("one", "two"):
        api.run(recipe, tmp_path / name, threads=1 if name == "one" else 2)
    first, second = (tmp_path / n / "model.safetensors" for n in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert not (tmp_path / "one.gates").exists()
    recipe["seed"] = 5
    api.run(recipe, tmp_path / "three")
    assert (tmp_path / "three" / "model.safetensors").read_bytes() != first.read_bytes()


def test_the_manifest_says_what_it_is_made_of(tmp_path: Path, recipe: dict[str, object]) -> None:
    out = tmp_path / "routed"
    api.run(recipe, out)
    manifest = json.loads((out / "moe_manifest.json").read_text())
    assert [expert["expert"] for expert in manifest["experts"]] == ["math", "code"]
    assert manifest["gate"]["method"] == "random"
    assert len(manifest["gate"]["sha256"]) == 64
    assert manifest["parameters"]["total"] == sum(p.numel() for p in load(out).parameters())
    import yaml

    lock = yaml.safe_load((out / "recipe.lock.yaml").read_text())
    digest = hashlib.sha256((out / "moe_manifest.json").read_bytes()).hexdigest()
    assert lock["outputs"]["moe_manifest.json"]["sha256"] == digest


def test_experts_of_another_dtype_are_rounded(dense: Dense, recipe: dict[str, object]) -> None:
    recipe["output"] = {"dtype": "bfloat16"}
    plan = api.plan(recipe)
    assert {job.dtype for job in plan.jobs} == {"BF16"}
    assert {job.kind for job in plan.jobs} == {"merge"}


def test_what_a_config_leaves_out_is_written(tmp_path: Path, dense: Dense) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in dense("llama").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    known = config(base)
    for key in ("rms_norm_eps", "rope_parameters", "rope_theta", "head_dim", "tie_word_embeddings"):
        known.pop(key, None)
    (base / "config.json").write_text(json.dumps(known))
    recipe = {
        "base": str(base),
        "moe": {"experts": ["base"] * 2, "for_training": True, "experts_per_token": 1},
    }
    api.run(recipe, tmp_path / "routed")
    found = config(tmp_path / "routed")
    # F3: Mixtral's own defaults are 1e-5 and 1e6.
    assert (found["rms_norm_eps"], found["rope_theta"]) == (1e-6, 10000.0)
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert found["tie_word_embeddings"] is False  # F15: it has a head of its own
    assert apart(base, tmp_path / "routed") < 5e-6


def test_it_is_explained_where_each_tensor_comes_from(
    dense: Dense, recipe: dict[str, object]
) -> None:
    from mergekit_lite.cli.plan import chains_text
    from mergekit_lite.plan.explain import explain, explain_text

    def told(name: str) -> str:
        loaded = api.load(recipe)
        return explain_text(explain(api.plan(loaded), loaded, name))

    block = "model.layers.1.block_sparse_moe"
    text = told(f"{block}.gate.weight")
    assert "made by the gate `random`" in text
    assert f"gates: {block}.gate.weight, made before the rows run" in text
    text = told(f"{block}.experts.1.w2.weight")
    assert "code: model.layers.1.mlp.down_proj.weight" in text
    assert "copy from the gates" in chains_text(api.plan(recipe), full=False)
    recipe["moe"] = {"target": "granitemoe", "gate": "random"}
    text = told("model.layers.1.block_sparse_moe.input_linear.weight")
    assert "math (input, whole): model.layers.1.mlp.gate_proj.weight" in text
    assert "code (input, whole): model.layers.1.mlp.up_proj.weight" in text
    assert "copy from code and math" in chains_text(api.plan(recipe), full=False)


def test_the_card_tells_of_the_experts(tmp_path: Path, recipe: dict[str, object]) -> None:
    api.run(recipe, tmp_path / "routed")
    card = (tmp_path / "routed" / "README.md").read_text()
    assert "- moe\n" in card
    assert "mixtral: 2 experts, 2 for each token" in card
    assert "| 1 | code |  |" in card


def test_a_plan_can_be_run_elsewhere(
    tmp_path: Path, dense: Dense, recipe: dict[str, object]
) -> None:
    from mergekit_lite.plan.types import Plan

    plan = Plan.from_json(api.plan(recipe).to_json())
    api.run(plan, tmp_path / "plan")
    api.run(recipe, tmp_path / "recipe")
    first, second = (tmp_path / n / "model.safetensors" for n in ("plan", "recipe"))
    assert first.read_bytes() == second.read_bytes()
