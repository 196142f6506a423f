"""The shipped JSON schema and reference, against the loader and the recipes of the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import registry
from mergekit_lite.ops._spec import names
from mergekit_lite.recipe import Recipe, load
from mergekit_lite.recipe.json_schema import json_schema
from mergekit_lite.recipe.reference import recipe_reference

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "mergekit_lite" / "recipe" / "recipe.schema.json"
EXPERTS = {"math": {"model": "./m", "weight": 0.5}, "code": "./c"}


def document(**changes: Any) -> dict[str, Any]:
    return {"base": "./b", "experts": EXPERTS, "steps": ["ties"], **changes}


GOOD = [
    document(moe={}),
    document(moe={"experts": ["base", {"expert": "base", "noise": 0.01}], "gate": "zeros"}),
    document(moe={"shared": "zero", "layers": "2-", "gate": {"method": "random", "std": 1.0}}),
    document(),
    document(steps=[{"ties": {"density": {"math": 0.2, "default": [0.1, 0.3]}}}]),
    document(steps=[{"ties": None}]),
    document(steps=[{"dare": {"density": 0.5}}, "task_arithmetic", {"scale": {"lambda": 2}}]),
    document(steps=[{"linear": {"weights": {"math": 0.5, "base": [0.1, 0.2]}}}]),
    document(rules=[{"match": "*.mlp.*", "take": "base"}]),
    document(rules=[{"match": {"layers": "0-4,7,30-", "role": "norm"}, "drop": True}]),
    document(rules=[{"match": {"layers": [0, "2-3"]}, "steps": ["linear"]}]),
    document(rules=[{"match": "*", "set": {"magnitude.density": 0.5}}]),
    document(output={"dtype": "float16", "shard_size": "5GiB"}),
    document(output={"shard_size": 123}, seed=3, compat="mergekit", extra="drop"),
    document(experts={"a": {"lora": "./l", "weight": [0, 1], "steps": ["dare"]}}),
    document(vars={"d": 0.2, "s": 3}, seed="${s}", steps=[{"ties": {"density": "${d}"}}]),
    document(schema_version=1, tokenizer={"source": "base"}, allow_missing=["*.bias"]),
]
BAD = [
    {"experts": EXPERTS, "steps": ["ties"]},
    {"base": "./b", "experts": EXPERTS},
    document(normalize=True),
    document(steps=[]),
    document(steps=["tise"]),
    document(steps=["layer_swap"]),
    document(steps=[{"ties": {}, "linear": {}}]),
    document(steps=[{"ties": {"densty": 0.2}}]),
    document(steps=[{"ties": {"density": 1.7}}]),
    document(steps=[{"ties": {"density": [0.1, 0]}}]),
    document(steps=[{"ties": {"density": {"math": 3}}}]),
    document(steps=[{"ties": {"elect": "mas"}}]),
    document(steps=[{"linear": {"normalize": "yes"}}]),
    document(experts={"base": "./x"}),
    document(experts={"a": {"weight": 1}}),
    document(experts={"a": {"model": "./a", "lora": "./l"}}),
    document(experts={"a": {"model": "./a", "weigth": 1}}),
    document(rules=[{"match": "*"}]),
    document(rules=[{"match": "*", "take": "base", "drop": True}]),
    document(rules=[{"match": {}, "take": "base"}]),
    document(rules=[{"match": {"role": "norms"}, "take": "base"}]),
    document(rules=[{"match": {"layers": "x"}, "take": "base"}]),
    document(output={"dtype": "bfloat"}),
    document(output={"shard_size": "5 apples"}),
    document(seed=-1),
    document(expect={}),
    document(moe={"target": "mixtra"}),
    document(moe={"experts": [{"prompts": ["x"]}]}),
    document(moe={"experts_per_token": 0}),
    document(where="x"),
]


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(SHIPPED.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("data", GOOD)
def test_schema_and_loader_accept(validator: Any, data: dict[str, Any]) -> None:
    assert [error.message for error in validator.iter_errors(data)] == []
    validator.validate(load(data).plain())


@pytest.mark.parametrize("data", BAD)
def test_schema_and_loader_refuse(validator: Any, data: dict[str, Any]) -> None:
    assert not validator.is_valid(data)
    with pytest.raises(RecipeError):
        load(data)


def test_a_recipe_that_extends_another_needs_nothing_else(validator: Any) -> None:
    assert validator.is_valid({"extends": "other.yaml", "seed": 3})
    assert validator.is_valid({"extends": ["a.yaml", "b.yaml"]})


def test_the_recipes_of_the_repository(validator: Any) -> None:
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        errors = [e.message for e in validator.iter_errors(yaml.safe_load(path.read_text()))]
        assert errors == [], path.name
        load(path)


def test_every_op_and_parameter_is_described() -> None:
    schema = json_schema(registry())
    branches = schema["$defs"]["RecipeStep"]["anyOf"][1]["properties"]
    assert branches.keys() == set(names(registry()))
    assert branches["soup"] == branches["linear"]
    for name, spec in registry().items():
        op = schema["$defs"][f"op.{name}"]
        assert op["description"]
        assert spec.parameters.keys() <= op["properties"].keys()
        for key in spec.parameters:
            assert op["properties"][key]["description"]
    for model in ("Expert", "Match", "Moe", "MoeExpert", "Output", "Rule", "Tokenizer"):
        for key, field in schema["$defs"][model]["properties"].items():
            assert field["description"], (model, key)
    assert all(field["description"] for field in schema["properties"].values())


def test_the_reference_names_every_key_and_op(read: Callable[..., Recipe], specs: Any) -> None:
    page = recipe_reference(specs)
    for word in ("base", "shard_size", "allow_missing", "density", "sparse_ties", "vars", "moe"):
        assert f"`{word}`" in page
    code = page.split("```yaml\n")[1].split("```")[0]
    assert read(code).steps[0].params == {"density": 0.2}


@pytest.mark.parametrize("tool", ["generate_schema.py", "generate_recipe_reference.py"])
def test_what_is_generated_is_up_to_date(tool: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / tool), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
