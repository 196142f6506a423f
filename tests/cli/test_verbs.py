"""`plan`, `check`, `verify`, `ops`, `inspect`, `diff` and `schema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from mergekit_lite.checkpoint import layer_of, role_of
from mergekit_lite.ops import registry
from mergekit_lite.plan.types import Plan
from mergekit_lite.recipe import load
from tests.checkpoints import llama_shapes

from .conftest import Call

NAME = "model.layers.1.mlp.up_proj.weight"


def test_plan_shows_inputs_chains_and_cost(call: Call, recipe: Path) -> None:
    result = call("plan", recipe)
    assert result.exit_code == 0
    assert "task_arithmetic  of math, code" in result.stdout
    assert "20 tensors (20 computed), BF16, 1 file\n" in result.stdout
    assert "write" in result.stdout
    assert result.stderr == ""


def test_plan_json_is_the_plan_and_its_cost(call: Call, recipe: Path) -> None:
    data = json.loads(call("plan", recipe, "--json").stdout)
    cost = data.pop("estimate")
    plan = Plan.from_json(json.dumps(data))
    assert cost["write_bytes"] == sum(shard.nbytes for shard in plan.shards)
    assert len(plan.jobs) == 20


def test_plan_expand_shows_presets_and_rows(call: Call, recipe: Path) -> None:
    words = ("--set", "steps=[{ties: {density: 0.3}}]")
    text = call("plan", recipe, "--expand", *words).stdout
    assert "magnitude(density=0.3" in text
    assert "sign_consensus(" in text
    assert NAME in text


def test_plan_explain_one_tensor(call: Call, recipe: Path) -> None:
    words = ("--set", "rules=[{match: {layers: 1}, take: code}]")
    text = call("plan", recipe, "--explain", NAME, *words).stdout
    assert text.startswith(NAME)
    assert "code" in text
    assert json.loads(call("plan", recipe, "--explain", NAME, "--json", *words).stdout)["rules"]


def test_plan_explain_unknown_tensor(call: Call, recipe: Path) -> None:
    result = call("plan", recipe, "--explain", NAME.replace("up", "upp"))
    assert result.exit_code == 2
    assert "did you mean" in result.stderr


def test_plan_shows_the_table_and_still_refuses(call: Call, recipe: Path) -> None:
    result = call("plan", recipe, "--max-memory", "1MB")
    assert result.exit_code == 4
    assert "memory" in result.stdout
    assert "--max-memory" in result.stderr


def test_check_reports_all_problems_with_lines(
    call: Call, tmp_path: Path, base_folder: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        f"schema_version: 1\nbase: {base_folder}\nexpertz: {{}}\n"
        "steps:\n  - tise: {density: 1.7}\nseed: x\n"
    )
    result = call("check", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "bad.yaml:3" in result.stderr
    assert "`ties`" in result.stderr
    assert "bad.yaml:6" in result.stderr
    data = json.loads(call("check", path, "--json").stdout)
    assert len(data["problems"]) >= 3
    assert call("check", path, "--json").exit_code == 2


def test_check_strict_counts_warnings(call: Call, recipe: Path, base_folder: Path) -> None:
    words = ("--set", f"experts.math.model={base_folder}")
    result = call("check", recipe, *words)
    assert result.exit_code == 0
    assert "warning" in result.stderr
    assert call("check", recipe, *words, "--strict").exit_code == 2


def test_missing_model_is_exit_5(call: Call, recipe: Path, tmp_path: Path) -> None:
    result = call("check", recipe, "--set", f"experts.math.model={tmp_path / 'nowhere'}")
    assert result.exit_code == 5
    assert "nowhere" in result.stderr


def test_verify_finds_a_changed_byte(call: Call, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("run", recipe, "-o", out, "--quiet").exit_code == 0
    assert call("verify", out).stdout == f"{out}: sound\n"
    assert call("verify", out, "--inputs").exit_code == 0
    (out / "tokenizer.json").write_text("{}")
    result = call("verify", out)
    assert result.exit_code == 3
    assert "tokenizer.json" in result.stderr
    data = call("verify", out, "--json")
    assert data.exit_code == 3
    assert json.loads(data.stdout)["problems"][0]["where"] == "tokenizer.json"


def test_verify_without_a_lock(call: Call, base_folder: Path, tmp_path: Path) -> None:
    assert call("verify", base_folder).exit_code == 5
    assert call("verify", tmp_path / "none").exit_code == 5


def test_ops_list_has_every_op(call: Call) -> None:
    text = call("ops", "list").stdout
    for name in registry():
        assert f"\n{name} " in text
    data = json.loads(call("ops", "list", "--json").stdout)
    assert {op["name"] for op in data} == set(registry())
    # How far a preset reaches is a matter of what it expands to.
    assert all((op["reach"] is None) == (op["kind"] == "preset") for op in data)


def test_the_example_of_drop_drops_something_of_the_zoo(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(call("ops", "show", "drop").stdout.split("A recipe to run\n\n")[1])
    (rule,) = load(path).rules
    names = llama_shapes(30, 8, 8, 8, tied=True)
    hits = [n for n in names if rule.match.matches(n, layer_of(n), role_of(n))]
    assert 0 < len(hits) < len(names) / 10


@pytest.mark.parametrize("name", sorted(registry()))
def test_ops_show_ends_with_a_recipe_that_loads(call: Call, name: str) -> None:
    result = call("ops", "show", name)
    assert result.exit_code == 0, result.stderr
    spec = registry()[name]
    assert spec.paper in result.stdout
    for parameter in spec.parameters.values():
        assert parameter.doc in result.stdout
    text = result.stdout.split("A recipe to run\n\n")[1]
    loaded = load(yaml.safe_load(text))
    used = {step.op for step in loaded.steps} | {rule.action for rule in loaded.rules}
    assert name in used


def test_ops_show_unknown(call: Call) -> None:
    result = call("ops", "show", "dare-ties")
    assert result.exit_code == 2
    assert "did you mean `dare_ties`?" in result.stderr


def test_inspect(call: Call, base_folder: Path) -> None:
    text = call("inspect", base_folder).stdout
    assert "LlamaForCausalLM" in text
    data = json.loads(call("inspect", base_folder, "--json").stdout)
    assert data["layers"] == 2
    assert data["total"]["tensors"] == 20
    listed = call("inspect", base_folder, "--tensors", "*.layers.1.*").stdout
    assert listed.count("model.layers.1.") == 9
    assert call("inspect", base_folder, "--tensors", "zzz*").exit_code == 2
    assert call("inspect", base_folder / "absent").exit_code == 5


def test_diff(call: Call, base_folder: Path, expert_folders: dict[str, Path]) -> None:
    same = call("diff", base_folder, base_folder)
    assert same.exit_code == 0
    assert "the two are the same" in same.stderr
    data = json.loads(call("diff", base_folder, expert_folders["math"], "--json").stdout)
    assert not data["same"]
    assert 0 < data["total"]["changed"] <= 1
    by_role = call("diff", base_folder, expert_folders["math"], "--by", "role").stdout
    assert by_role.splitlines()[0].startswith("role")
    assert by_role.splitlines()[-1].startswith("total")


def test_schema_accepts_the_example(call: Call, recipe: Path) -> None:
    import jsonschema

    schema = json.loads(call("schema").stdout)
    jsonschema.validate(yaml.safe_load(recipe.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema_version": 1, "bse": "x"}, schema)


def test_one_of_a_thing_is_said_in_the_singular(
    call: Call, base_folder: Path, tmp_path: Path
) -> None:
    text = call("inspect", base_folder).stdout
    assert "in 1 file\n" in text
    weights = load_file(base_folder / "model.safetensors")
    left, right = tmp_path / "left.safetensors", tmp_path / "right.safetensors"
    save_file(weights, left)
    weights.pop("model.norm.weight")
    save_file(weights, right)
    assert f"1 tensor only in {left}: model.norm.weight\n" in call("diff", left, right).stderr
