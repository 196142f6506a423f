"""Other names of ops, ops whose space is a parameter, and presets that are told experts' names."""

from __future__ import annotations

from typing import Any

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe import Recipe, chain, load


def recipe(*steps: Any, **more: Any) -> Recipe:
    experts = {"math": "./math", "code": "./code"}
    return load({"schema_version": 1, "base": "./b", "experts": experts, "steps": steps, **more})


def problems(*steps: Any, **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(*steps, **more)
    return str(caught.value)


def test_an_alias_is_its_op_from_the_start() -> None:
    for step in ("soup", {"soup": None}, {"uniform_soup": {"normalize": False}}):
        assert recipe(step).steps[0].op == "linear"


def test_a_rule_may_set_a_parameter_by_the_alias() -> None:
    rules = [{"match": {"layers": 0}, "set": {"soup.normalize": False}}]
    found = recipe("soup", rules=rules)
    assert found.rules[0].set == {"linear.normalize": False}


def test_a_slip_in_an_alias_is_understood() -> None:
    assert "did you mean `soup`?" in problems("suop")


def test_the_space_decides_what_may_stand_before_a_combine() -> None:
    assert recipe("dare", {"multislerp": {"space": "delta"}}).steps[1].op == "multislerp"
    assert "works on whole weights" in problems("dare", {"multislerp": {"space": "weight"}})
    assert "works on whole weights" in problems("karcher", {"scale": {"lambda": 0.5}})
    weights = {"base": 1, "math": 1}
    assert recipe({"karcher": {"weights": weights}}).steps[0].params["weights"] == weights


def test_presets_that_are_told_names_take_no_weights() -> None:
    named = {"expert": "math", "anti_expert": "code"}
    found = recipe({"cape": {**named, "alpha": 0.5}})
    assert chain(found, found.steps).weights == {"math": 0.5, "code": -0.5}
    assert "has no parameter `weights`" in problems({"cape": {**named, "weights": {"math": 1}}})
    assert "there is no expert `mth`" in problems(
        {"cape": {"expert": "mth", "anti_expert": "code"}}
    )
