"""Files of several recipes, and models that need a recipe of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import Problem
from mergekit_lite.recipe import load
from mergekit_lite.recipe.load import read_tree
from mergekit_lite.recipe.marks import Problems

Refused = Callable[..., list[Problem]]
Write = Callable[..., Path]

CHAIN = """
name: inner
merge_method: slerp
base_model: ./a
models: [{model: ./b}]
parameters: {t: 0.3}
---
merge_method: task_arithmetic
base_model: ./a
models:
  - {model: inner, parameters: {weight: 0.5}}
  - {model: ./c, parameters: {weight: 0.5}}
dtype: bfloat16
"""


def test_a_chain_becomes_stages(write: Write) -> None:
    problems = Problems()
    tree: dict[str, Any] = read_tree(write(CHAIN), (), problems).root.plain()
    problems.raise_if_any()
    assert tree["experts"]["inner"] == {"model": "@inner", "weight": 0.5}
    assert load(write(CHAIN)).stages["inner"].compat == "mergekit"
    assert tree["stages"] == {
        "inner": {
            "base": "./a",
            "experts": {"b": {"model": "./b"}},
            "steps": [{"slerp": {"t": 0.3}}],
            "compat": "mergekit",
        }
    }


def test_an_adapter_of_another_model_is_a_stage(write: Write) -> None:
    text = """
        merge_method: task_arithmetic
        base_model: ./a
        models: [{model: ./b+./lora, parameters: {weight: 1}}]
        """
    tree: dict[str, Any] = read_tree(write(text), (), Problems()).root.plain()
    assert tree["experts"] == {"lora": {"model": "@lora", "weight": 1}}
    assert tree["stages"]["lora"] == {
        "base": "./b",
        "experts": {"adapter": {"lora": "./lora"}},
        "steps": [{"passthrough": {"source": "adapter"}}],
    }


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("name: inner\n", "", "a second recipe without a `name`"),
        ("---\n", "---\nname: outer\n", "all recipes of this file have a `name`"),
        ("---\n", "---\nname: inner\n", "the name `inner` is not text, or another recipe's"),
        ("inner, param", "iner, param", "the stage `inner` is not used"),
    ],
)
def test_what_is_wrong_in_a_chain(refused: Refused, old: str, new: str, what: str) -> None:
    assert old in CHAIN
    found = refused(CHAIN.replace(old, new))
    assert any(what in problem.what for problem in found)


def test_several_of_ours_are_still_one_too_many(refused: Refused) -> None:
    (problem,) = refused("base: a\nsteps: [x]\n---\nbase: b\nsteps: [x]\n")
    assert problem.what == "2 YAML documents in one file"


def test_a_name_alone_is_read_past(write: Write) -> None:
    text = CHAIN[: CHAIN.index("---")]
    assert load(write(text)).base == "./a"


def test_stages_of_stages_stand_side_by_side(write: Write) -> None:
    text = CHAIN.replace("models: [{model: ./b}]", "models: [{model: ./b+./lora}]")
    last = CHAIN[CHAIN.index("---\n") :].replace("model: inner", "model: ./b+./lora2")
    outer = last.replace("---\n", "---\nname: outer\n")
    problems = Problems()
    tree: dict[str, Any] = read_tree(write(text + outer), (), problems).root.plain()
    problems.raise_if_any()
    assert list(tree["stages"]) == ["lora", "inner", "lora2", "outer"]
    assert tree["stages"]["inner"]["experts"] == {"lora": {"model": "@lora"}}
    assert "stages" not in tree["stages"]["inner"]


def test_an_adapter_and_a_recipe_of_one_name(refused: Refused) -> None:
    text = CHAIN.replace("{model: ./c,", "{model: inner,").replace(
        "{model: inner,", "{model: ./c+./inner,", 1
    )
    (problem,) = [p for p in refused(text) if "so is another recipe" in p.what]
    assert problem.hint == "rename the recipe"
