"""`extends`, `vars` and `--set`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe import Recipe, load
from mergekit_lite.recipe.extends import merge
from mergekit_lite.recipe.marks import Problems, from_plain
from mergekit_lite.recipe.variables import substitute_variables

Read = Callable[..., Recipe]
Write = Callable[..., Path]
Refused = Callable[..., list[Any]]
KEYS = st.sampled_from("abcd")
TREES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
MAPS = st.dictionaries(KEYS, TREES, max_size=3)

PARENT = """
    base: ./base
    experts: {math: {model: ./math, weight: 0.5}, code: ./code}
    steps: [{ties: {density: 0.2}}]
    output: {dtype: bfloat16}
"""


def test_mappings_merge_and_lists_replace(specs: Any, write: Write) -> None:
    write(PARENT, "parent.yaml")
    child = """
        extends: parent.yaml
        experts: {math: {weight: 0.7}, chat: ./chat}
        steps: [linear]
        output: {shard_size: 1GB}
    """
    recipe = load(write(child))
    assert {name: e.reference for name, e in recipe.experts.items()} == {
        "math": "./math",
        "code": "./code",
        "chat": "./chat",
    }
    assert recipe.experts["math"].weight == 0.7
    assert [step.op for step in recipe.steps] == ["linear"]
    assert (recipe.output.dtype, recipe.output.shard_size) == ("bfloat16", 1_000_000_000)
    assert recipe.at("output", "dtype").startswith("parent.yaml:4:")
    assert recipe.at("experts", "math", "weight") == "recipe.yaml:2:26"


@pytest.mark.parametrize(
    ("over", "expert"),
    [
        ("{weight: 2}", ("./code", None, 2.0)),
        ("{model: ./other}", ("./other", None, None)),
        ("{lora: ./fine}", (None, "./fine", None)),
    ],
)
def test_a_short_form_is_written_out_before_it_is_laid_over(
    specs: Any, write: Write, over: str, expert: tuple[Any, ...]
) -> None:
    write(PARENT, "parent.yaml")
    found = load(write(f"extends: parent.yaml\nexperts: {{code: {over}}}\n")).experts["code"]
    assert (found.model, found.lora, found.weight) == expert


def test_a_short_form_laid_over_a_long_one_keeps_the_rest(specs: Any, write: Write) -> None:
    write("{experts: {math: {lora: ./fine, weight: 3}}}", "middle.yaml")
    write(PARENT, "parent.yaml")
    recipe = load(write("extends: [parent.yaml, middle.yaml]\nexperts: {math: ./new}\n"))
    assert (recipe.experts["math"].model, recipe.experts["math"].lora) == ("./new", None)
    assert recipe.experts["math"].weight == 3


def test_of_several_the_later_wins_and_paths_stay_with_their_file(specs: Any, write: Write) -> None:
    write(PARENT, "shared/parent.yaml")
    write("{seed: 1, compat: mergekit}", "one.yaml")
    write("{seed: 2}", "two.yaml")
    recipe = load(write("extends: [shared/parent.yaml, one.yaml, two.yaml]"))
    assert (recipe.seed, recipe.compat) == (2, "mergekit")
    assert recipe.base == "./shared/base"
    assert recipe.experts["math"].model == "./shared/math"
    assert recipe.experts["code"].model == "./shared/code"


def test_a_problem_in_an_extended_file_is_placed_there(specs: Any, write: Write) -> None:
    write("base: ./b\nsteps: [tise]\n", "sub/parent.yaml")
    with pytest.raises(RecipeError) as caught:
        load(write("extends: sub/parent.yaml\nsed: 1\nexperts: {a: ./a}"))
    assert [problem.where for problem in caught.value.problems] == [
        "recipe.yaml:2:1",
        "sub/parent.yaml:2:9",
    ]


def test_a_circle_names_the_chain(refused: Refused, write: Write) -> None:
    write("extends: b.yaml", "a.yaml")
    write("extends: a.yaml", "b.yaml")
    (problem,) = refused("extends: a.yaml")
    assert problem.what.endswith("in a circle: a.yaml -> b.yaml -> a.yaml")
    assert problem.where == "b.yaml:1:10"


def test_a_missing_parent(refused: Refused) -> None:
    (problem,) = refused("extends: nope.yaml")
    assert "nope.yaml" in problem.what
    assert problem.where == "recipe.yaml:1:10"
    assert "recipe.yaml" in problem.hint


@settings(max_examples=40)
@given(MAPS, MAPS)
def test_of_two_laid_over_the_upper_is_all_there(under: Any, over: Any) -> None:
    low, high = from_plain(under, "x"), from_plain(over, "x")
    found = dict(merge(low, high).walk())
    for path, node in high.walk():
        if not isinstance(node.value, dict):
            assert found[path].plain() == node.plain()
    assert merge(low, high).value.keys() == under.keys() | over.keys()
    assert merge(low, low).plain() == merge(low, from_plain({}, "x")).plain() == under


def test_variables_keep_their_type_and_are_written_out_in_text(read: Read) -> None:
    recipe = read(
        """
        vars: {d: 1e-1, dir: ./models, full: "${dir}/math", depth: [0.1, "${d}"], n: 3}
        base: ${dir}/base
        experts: {math: {model: "${full}", weight: "${depth}"}, x3: "./x${n}"}
        steps: [{ties: {density: "${d}"}}]
        seed: ${n}
        """
    )
    assert recipe.base == "./models/base"
    assert recipe.experts["math"].model == "./models/math"
    assert recipe.experts["math"].weight == (0.1, 0.1)
    assert recipe.experts["x3"].model == "./x3"
    assert recipe.steps[0].params == {"density": 0.1}
    assert recipe.seed == 3


def test_a_quoted_number_stays_text_through_variables_and_overrides(
    read: Read, refused: Refused
) -> None:
    text = "base: ./b\nexperts: {math: {model: ./m, weight: %s}}\nsteps: [linear]\nvars: {d: %s}\n"
    assert read(text % ('"0.${d}"', "5")).experts["math"].weight == 0.5
    (problem,) = refused(text % ('"${d}"', "'5'"))
    assert (problem.where, problem.hint) == ("recipe.yaml:2:38", "remove the quotes")
    (problem,) = refused(text % ("1", "1"), "experts.math.weight='0.5'")
    assert problem.where == "--set experts.math.weight='0.5'"


def test_a_dollar_can_be_written(read: Read) -> None:
    recipe = read("base: './$${x}'\nexperts: {a: ./a$}\nsteps: [linear]")
    assert recipe.base == "./${x}"
    assert recipe.experts["a"].model == "./a$"


def test_wrong_variables(refused: Refused) -> None:
    problems = refused(
        """
        vars: {density: 0.2, a: "${b}", b: "${a}", list: [1]}
        base: ${densty}/x
        experts: {m: "./${list}"}
        steps: [linear]
        """
    )
    assert [(p.where, p.what) for p in problems] == [
        ("recipe.yaml:1:36", "variables use one another in a circle: a -> b -> a"),
        ("recipe.yaml:2:7", "unknown variable `densty`"),
        ("recipe.yaml:3:14", "`${list}` is a list and cannot stand inside a text"),
    ]
    assert problems[1].hint == "did you mean `density`?"


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from("abcde"), st.integers() | st.text("xyz "), min_size=1))
def test_a_whole_variable_is_its_value(declared: dict[str, Any]) -> None:
    root = from_plain({"vars": declared, **{k: f"${{{k}}}" for k in declared}}, "x")
    assert substitute_variables(root, Problems()).plain() == declared


BASE = "base: ./b\nexperts: {math: ./m, code: ./c}\nsteps: [ties]\n"


def test_overrides_reach_everything(read: Read) -> None:
    recipe = read(
        BASE,
        "output.dtype=float16",
        "steps.0.ties.density=1e-1",
        "experts.math.weight=[0.1, 0.9]",
        "seed=7",
        "rules=[{match: '*', set: {magnitude.density: 0.5}}]",
        'rules.0.set."magnitude.density"=0.6',
        "rules.1={match: {role: norm}, take: base}",
        "vars.x=./z",
        "base=${x}",
    )
    assert recipe.output.dtype == "float16"
    assert recipe.steps[0].params == {"density": 0.1}
    assert recipe.experts["math"].model == "./m"
    assert recipe.experts["math"].weight == (0.1, 0.9)
    assert recipe.seed == 7
    assert recipe.rules[0].set == {"magnitude.density": 0.6}
    assert recipe.rules[1].take == "base"
    assert recipe.base == "./z"
    assert recipe.at("seed") == "--set seed=7"


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("seed", "an override is `path=value`"),
        ("=3", "an override is `path=value`"),
        ("a..b=3", "an override is `path=value`"),
        ("sed=3", "unknown key `sed`"),
        ("steps.3.ties.density=0.3", "`3` is no entry of `steps`"),
        ("base.x=3", "`base` is text: nothing can be set inside it"),
        ("seed=[1", "not valid YAML"),
        ("extends=other.yaml", "`extends` cannot be set on the command line"),
        ("steps.0.ties.density=7", "`density` of `ties` is 7, outside its range"),
    ],
)
def test_wrong_overrides_name_themselves(refused: Refused, override: str, what: str) -> None:
    (problem,) = refused(BASE, override)
    assert problem.what.startswith(what)
    assert problem.where == f"--set {override}"
