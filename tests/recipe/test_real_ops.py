"""Recipes against the ops that the package brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.ops import registry
from mergekit_lite.recipe import chain, expand, load

HEAD = {"base": "./b", "experts": {"math": {"model": "./m", "weight": 0.5}, "code": "./c"}}


@pytest.mark.parametrize(
    ("preset", "ops"),
    [
        ("ties", ["magnitude", "sign_consensus", "scale"]),
        ("dare_linear", ["dare", "task_arithmetic"]),
        ("dare_ties", ["dare", "magnitude", "sign_consensus", "scale"]),
        ("breadcrumbs_ties", ["breadcrumbs", "sign_consensus", "scale"]),
    ],
)
@pytest.mark.parametrize("compat", ["none", "mergekit"])
def test_presets(preset: str, ops: list[str], compat: str) -> None:
    recipe = load({**HEAD, "steps": [preset], "compat": compat})
    found = expand(recipe.steps, compat=compat)
    if compat == "none":
        assert [op for op, _ in found] == ops
    for op, params in found:
        spec = registry()[op]
        assert spec.problems(params) == []
        assert params.keys() == spec.parameters.keys()


@pytest.mark.parametrize(
    "steps",
    [
        ["linear"],
        ["task_arithmetic"],
        [{"magnitude": {"density": 0.2}}, "sign_consensus", {"scale": {"lambda": 0.5}}],
        [{"dare": {"density": {"math": 0.5, "default": [0.2, 0.9]}}}, "task_arithmetic"],
        ["breadcrumbs", {"task_arithmetic": {"lambda": [0.5, 1]}}],
        ["slerp"],
        [{"slerp": {"t": [0, 1], "weights": {"code": 1, "base": 1}}}],
        [{"passthrough": {"source": "math", "scale": 2}}],
        [{"take": {"source": "base"}}],
        ["drop"],
        [{"layer_swap": {"from": "math", "into": "code", "bottom": 5, "top": 2}}],
    ],
)
def test_chains_that_are_right(steps: list[Any]) -> None:
    recipe = load({**HEAD, "steps": steps})
    found = chain(recipe, recipe.steps, name="model.layers.6.x", layer=6, layers=32)
    spec = registry()[found.combine]
    assert spec.kind == "combine"
    assert spec.problems(found.params) == []
    assert load(recipe.plain()).plain() == recipe.plain()


def test_a_swap_of_layers_takes_the_weights_of_its_transition() -> None:
    swap = {"from": "math", "into": "code", "bottom": 5, "top": 2}
    recipe = load({**HEAD, "steps": [{"layer_swap": swap}]})
    lower = chain(recipe, recipe.steps, layer=0, layers=32)
    assert (lower.combine, lower.params) == ("take", {"source": "math"})
    between = chain(recipe, recipe.steps, layer=5, layers=32)
    assert (between.combine, between.weights) == ("linear", {"math": 0.5, "code": 0.5})


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ([{"layer_swap": {"from": "math", "into": "math", "bottom": 1, "top": 1}}], "the same"),
        ([{"layer_swap": {"from": "math", "into": "cod", "bottom": 1, "top": 1}}], "`cod`"),
        ([{"layer_swap": {"from": "math"}}], "needs `into`"),
        (["passthrough"], "cannot tell which of 2 experts"),
        ([{"breadcrumbs": {"gamma": 1}}, "task_arithmetic"], "outside its range"),
        (["take"], "needs `source`"),
        (["ties", "slerp"], "second combine"),
    ],
)
def test_chains_that_are_wrong(steps: list[Any], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        load({**HEAD, "steps": steps})


def test_one_expert_slerps_with_the_base(write: Callable[..., Path]) -> None:
    recipe = load(write("base: ./b\nexperts: {a: ./a}\nsteps: [slerp]"))
    assert recipe.steps[0].op == "slerp"
    three = write("base: ./b\nexperts: {a: ./a, b: ./x, c: ./y}\nsteps: [slerp]")
    with pytest.raises(RecipeError, match="`slerp` takes at most 2 experts, here are 3"):
        load(three)
