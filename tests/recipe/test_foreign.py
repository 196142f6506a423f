from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from mergekit_lite.errors import Problem
from mergekit_lite.recipe import load

Refused = Callable[..., list[Problem]]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("gate_mode: hidden\nexperts: []\n", "1:1"),
        ("base_model: x\nexperts:\n  - source_model: y\n    positive_prompts: [z]\n", "2:1"),
    ],
)
def test_a_routed_model_is_another_commands_recipe(refused: Refused, text: str, where: str) -> None:
    (problem,) = refused(text)
    assert problem.where == f"recipe.yaml:{where}"
    assert "`mergekit-moe`" in problem.what
    assert "not supported by this version" in problem.what


def test_a_misspelt_method_of_another_tool(refused: Refused) -> None:
    what, name = refused(
        """
        merge_method: dare-ties
        base_model: ./b
        slices: []
        """
    )
    assert what.where == "recipe.yaml:1:1"
    assert what.what == "this is a mergekit recipe, which is not supported by this version"
    assert (name.where, name.what) == ("recipe.yaml:1:15", "unknown merge method `dare-ties`")
    assert name.hint == "did you mean `dare_ties`?"


def test_our_words_for_a_simple_one(refused: Refused, tmp_path: Path) -> None:
    (problem,) = refused(
        """
        merge_method: ties
        base_model: ./b
        models:
          - model: ./b
          - {model: ./m, parameters: {weight: 0.5, density: 0.3}}
          - {model: ./c, parameters: {weight: [0.1, 0.9], density: 0.4}}
        parameters: {int8_mask: true, lambda: 0.7}
        dtype: bfloat16
        """
    )
    text = dedent(problem.hint.partition("\n")[2])
    expected: dict[str, Any] = {
        "base": "./b",
        "experts": {
            "expert1": {"model": "./m", "weight": 0.5},
            "expert2": {"model": "./c", "weight": [0.1, 0.9]},
        },
        "steps": [{"ties": {"density": {"expert1": 0.3, "expert2": 0.4}, "lambda": 0.7}}],
        "output": {"dtype": "bfloat16"},
        "compat": "mergekit",
    }
    assert yaml.safe_load(text) == expected
    (tmp_path / "ours.yaml").write_text(text)
    assert load(tmp_path / "ours.yaml").experts["expert2"].weight == (0.1, 0.9)


@pytest.mark.parametrize(
    "text",
    [
        "slices: [{sources: []}]\nmerge_method: passthrough",
        "models: [{model: ./a}]\n",
        "merge_method: [ties]\nmodels: [x]\n",
        "merge_method: ties\nmodels: [{model: [./a]}, 3]\n",
        "merge_method: ties\nmodels: [{model: ./a, parameters: 3}]\nparameters: 4\n",
    ],
)
def test_less_simple_ones_are_still_named(refused: Refused, text: str) -> None:
    assert "this is a mergekit recipe" in refused(text)[0].what + refused(text)[-1].what
