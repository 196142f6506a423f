from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe import Recipe, chain, expand, resolve

Read = Callable[..., Recipe]
NUMBERS = st.floats(-10, 10)


def at(value: Any, layer: int | None, layers: int = 5, name: str = "", expert: Any = None) -> Any:
    return resolve(value, expert=expert, layer=layer, layers=layers, name=name)


def test_a_gradient_runs_over_the_depth() -> None:
    assert [at([0.0, 1.0], layer) for layer in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [at([0.0, 1.0, 0.0], layer) for layer in range(5)] == [0, 0.5, 1, 0.5, 0]
    assert [at([3.0], layer) for layer in range(5)] == [3] * 5
    assert at([0.0, 1.0], 0, layers=1) == 0


def test_outside_the_layers_a_gradient_takes_its_ends() -> None:
    assert at([0.2, 0.6], None, name="model.embed_tokens.weight") == 0.2
    assert at([0.2, 0.6], None, name="model.norm.weight") == 0.6
    assert at([0.2, 0.6], None, name="lm_head.weight") == 0.6


def test_a_map_by_expert() -> None:
    value = {"math": [0.0, 1.0], "default": 7}
    assert at(value, 1, expert="math") == 0.25
    assert at(value, 1, expert="code") == 7
    assert at(value, 1) == {"math": 0.25, "default": 7}
    with pytest.raises(KeyError, match="code"):
        at({"math": 1}, 1, expert="code")


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.integers(1, 40))
def test_gradients_stay_between_their_neighbours(points: list[float], layers: int) -> None:
    found = [at(points, layer, layers) for layer in range(layers)]
    slack = 1e-9
    assert all(min(points) - slack <= value <= max(points) + slack for value in found)
    assert found[0] == points[0]
    if layers > 1:
        assert found[-1] == pytest.approx(points[-1])
    if all(a <= b for a, b in pairwise(points)):
        assert all(a <= b + slack for a, b in pairwise(found))


def test_presets_are_written_out(specs: Any) -> None:
    assert expand([("ties", {"density": 0.3})]) == [
        ("magnitude", {"density": 0.3}),
        ("sign_consensus", {"elect": "mass"}),
        ("scale", {"lambda": 1.0}),
    ]
    assert expand([("sparse_ties", {"drop": 0.75})])[0] == ("magnitude", {"density": 0.25})


def test_preset_parameters_are_resolved_before(specs: Any) -> None:
    steps = [("sparse_ties", {"drop": {"math": [0.5, 0.9], "default": 0.75}})]
    math = expand(steps, expert="math", layer=0, layers=2)
    assert math[0] == ("magnitude", {"density": 0.5})
    assert expand(steps, expert="code", layer=0, layers=2)[0] == ("magnitude", {"density": 0.25})


def test_a_preset_may_look_at_the_place(specs: Any) -> None:
    steps = [("layer_swap", {"bottom": "math", "top": "code", "at": 2})]
    found = [expand(steps, layer=layer, layers=4)[0][1]["expert"] for layer in range(4)]
    assert found == ["math", "math", "code", "code"]


def test_other_defaults_in_compat_mode(specs: Any) -> None:
    assert expand([("dare", {})])[0][1] == {"density": 0.5, "rescale": "inv_density"}
    assert expand([("dare", {})], compat="mergekit")[0][1]["rescale"] == "l1"
    given = expand([("dare", {"rescale": "none"})], compat="mergekit")
    assert given[0][1]["rescale"] == "none"
    assert expand([("sign_consensus", {})], compat="mergekit")[0][1] == {"elect": "count"}
    # The preset hands on its own value, which stands above the op's compat default.
    assert expand([("ties", {})], compat="mergekit")[1][1] == {"elect": "mass"}


def test_set_changes_presets_first_and_named_ops_exactly(specs: Any) -> None:
    def density(*sets: dict[str, Any]) -> float:
        value = expand([("ties", {"density": 0.3})], sets=sets)[0][1]["density"]
        assert isinstance(value, float)
        return value

    assert density({"density": 0.5}) == 0.5
    assert density({"magnitude.density": 0.6}) == 0.6
    assert density({"magnitude.density": 0.6, "density": 0.5}) == 0.6
    assert density({"density": 0.5}, {"density": 0.7}) == 0.7
    assert density({"dare.density": 0.5}) == 0.3


def test_set_for_one_expert_leaves_the_others(specs: Any) -> None:
    sets = [{"density": {"math": 0.9}}]
    steps = [("ties", {"density": 0.3})]
    assert expand(steps, expert="math", sets=sets)[0][1] == {"density": 0.9}
    assert expand(steps, expert="code", sets=sets)[0][1] == {"density": 0.3}


def test_a_whole_parameter_stays_whole_under_a_gradient(specs: Any) -> None:
    found = [
        expand([("median", {"rounds": [1, 4]})], layer=layer, layers=3)[0][1]["rounds"]
        for layer in range(3)
    ]
    assert found == [1, 2, 4]
    assert all(type(value) is int for value in found)


TWO = """
    base: ./b
    experts:
      math: {model: ./m, weight: [0.0, 1.0], steps: [dare]}
      code: {model: ./c}
    steps: [{ties: {density: {math: 0.5, default: 0.25}}}]
"""


def test_the_whole_chain_of_a_tensor(read: Read) -> None:
    recipe = read(TWO)
    found = chain(recipe, recipe.steps, name="model.layers.1.x", layer=1, layers=5)
    assert found.combine == "sign_consensus"
    assert found.params == {"elect": "mass"}
    assert found.weights == {"math": 0.25, "code": 1.0}
    assert found.posts == (("scale", {"lambda": 1.0}),)
    assert found.transforms == {
        "math": (
            ("dare", {"density": 0.5, "rescale": "inv_density"}),
            ("magnitude", {"density": 0.5}),
        ),
        "code": (("magnitude", {"density": 0.25}),),
    }


def test_weights_by_strength(read: Read) -> None:
    recipe = read(TWO)
    own = "{linear: {weights: {code: [0.0, 4.0], base: 2}}}"
    other = read(f"base: ./b\nexperts: {{math: ./m, code: ./c}}\nsteps: [{own}]")
    found = chain(other, other.steps, layer=1, layers=5)
    assert list(found.weights.items()) == [("base", 2.0), ("code", 1.0)]
    assert found.transforms.keys() == {"code"}
    assert "weights" not in found.params
    sets: list[dict[str, Any]] = [{"weight": {"math": 0.5}}]
    assert chain(recipe, recipe.steps, sets=sets).weights == {"math": 0.5, "code": 1.0}
    sets.append({"weight": [2.0, 3.0]})
    weights = chain(recipe, recipe.steps, layer=1, layers=3, sets=sets).weights
    assert weights == {"math": 2.5, "code": 2.5}


def test_a_combine_with_a_value_for_each_expert(read: Read) -> None:
    head = "base: ./b\nexperts: {math: ./m, code: ./c}\nsteps: "
    recipe = read(f"{head}[{{median: {{temper: {{math: 0.5}}}}}}]")
    assert chain(recipe, recipe.steps).params["temper"] == {"math": 0.5, "code": 1.0}
    recipe = read(f"{head}[{{median: {{temper: 0.5}}}}]")
    assert chain(recipe, recipe.steps).params["temper"] == 0.5
    sets = [{"temper": {"code": 3.0}}]
    assert chain(recipe, recipe.steps, sets=sets).params["temper"] == {"math": 0.5, "code": 3.0}


def test_no_chain_without_a_combine_of_one_value(read: Read) -> None:
    recipe = read("base: ./b\nexperts: {math: ./m, code: ./c}\nsteps: [ties]")
    with pytest.raises(RecipeError, match="`elect` of `sign_consensus` takes one value"):
        chain(recipe, recipe.steps, sets=[{"sign_consensus.elect": {"math": "count"}}])


def test_no_experts(read: Read) -> None:
    recipe = read("base: ./b\nsteps: [{take: {expert: base}}]")
    found = chain(recipe, recipe.steps)
    assert (found.combine, found.params, found.weights) == ("take", {"expert": "base"}, {})


@pytest.mark.parametrize(
    ("layer", "layers", "name", "none", "mergekit"),
    [
        (None, 4, "lm_head.weight", 3.0, 1.0),
        (None, 4, "model.embed_tokens.weight", 1.0, 1.0),
        (0, 1, "model.layers.0.mlp.up_proj.weight", 1.0, 3.0),
        (1, 3, "model.layers.1.mlp.up_proj.weight", 2.0, 2.0),
    ],
)
def test_where_a_gradient_begins_and_ends(
    layer: int | None, layers: int, name: str, none: float, mergekit: float
) -> None:
    """mergekit gives all that is in no layer the first value, and a lone layer the last."""
    where = {"expert": None, "layer": layer, "layers": layers, "name": name}
    assert resolve([1.0, 3.0], **where) == none
    assert resolve([1.0, 3.0], **where, compat="mergekit") == mergekit
