"""Parameters that a search chooses: where they may stand, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe import Recipe, load
from mergekit_lite.recipe.load import read_tree
from mergekit_lite.recipe.marks import Problems
from mergekit_lite.recipe.searched import Searched, searched, with_values

Read = Callable[[str], Recipe]


def found_in(folder: Path, text: str) -> tuple[Searched, ...]:
    (folder / "recipe.yaml").write_text(text)
    tree = read_tree(folder / "recipe.yaml", (), problems := Problems())
    found = searched(tree.root, problems)
    problems.raise_if_any()
    return found


EVERYWHERE = """\
base: ./base
vars: {shared: {search: [0, 1]}}
experts:
  one: {model: ./one, weight: "${shared}"}
  two: {model: ./two, weight: [{search: [0.1, 10], log: true}, 0.5]}
  three: {model: ./three, weight: "${shared}", steps: [{dare: {density: {search: [0.1, 0.9]}}}]}
steps:
  - magnitude: {density: {one: {search: [0.1, 1], step: 0.1}, default: 0.5}}
  - sign_consensus: {elect: {choice: [mass, count], default: count}}
rules:
  - {match: {layers: "0"}, set: {weight: {two: {search: [1, 4], step: 1}}}}
"""


def test_every_place_of_a_parameter_is_found(tmp_path: Path) -> None:
    found = {one.name: one for one in found_in(tmp_path, EVERYWHERE)}
    assert list(found) == [
        "experts.one.weight",
        "experts.two.weight.0",
        "experts.three.steps.0.dare.density",
        "steps.0.magnitude.density.one",
        "steps.1.sign_consensus.elect",
        "rules.0.set.weight.two",
    ]
    shared = found["experts.one.weight"]
    assert shared.paths == (("experts", "one", "weight"), ("experts", "three", "weight"))
    assert (shared.low, shared.high, shared.start) == (0.0, 1.0, 0.5)
    log = found["experts.two.weight.0"]
    assert log.log
    assert log.start == pytest.approx(1.0)
    assert found["steps.1.sign_consensus.elect"].start == "count"
    assert found["rules.0.set.weight.two"].whole
    assert found["rules.0.set.weight.two"].start in (2, 3)


def test_values_are_put_in_at_all_places(tmp_path: Path) -> None:
    found = found_in(tmp_path, EVERYWHERE)
    tree = read_tree(tmp_path / "recipe.yaml", (), Problems())
    values = {one.name: one.start for one in found} | {"experts.one.weight": 0.75}
    plain = with_values(tree.root, found, values).plain()
    assert plain["experts"]["one"]["weight"] == plain["experts"]["three"]["weight"] == 0.75
    assert plain["experts"]["two"]["weight"][1] == 0.5
    assert plain["steps"][1] == {"sign_consensus": {"elect": "count"}}


def recipe(weight: str, steps: str = "[task_arithmetic]", more: str = "") -> str:
    experts = f"{{one: {{model: ./one, weight: {weight}}}}}"
    return f"base: ./base\nexperts: {experts}\nsteps: {steps}\n{more}"


def test_a_run_takes_defaults_and_refuses_what_has_none(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe("{search: [0, 1], default: 0.3}"))
    assert load(file).experts["one"].weight == 0.3
    file.write_text(recipe("{search: [0, 1]}"))
    with pytest.raises(RecipeError) as caught:
        load(file)
    (problem,) = caught.value.problems
    assert problem.what == "`experts.one.weight` is to be searched, and has no value"
    assert problem.where.endswith("recipe.yaml:2:39")
    assert "mergekit-lite search" in problem.hint
    assert load(file, ["experts.one.weight=0.7"]).experts["one"].weight == 0.7


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (recipe("{search: [1, 1]}"), "the range [1, 1] is empty"),
        (recipe("{search: [2, 1]}"), "the range [2, 1] is empty"),
        (recipe("{search: 0.5}"), "`search` takes a range of two numbers"),
        (recipe("{search: [0, x]}"), "`search` takes a range of two numbers"),
        (recipe("{search: [0, .inf]}"), "`search` takes a range of two numbers"),
        (recipe("{search: [0, 1], log: true}"), "a range with `log` lies above 0"),
        (recipe("{search: [1, 2], log: true, step: 1}"), "`log` or `step`, not both"),
        (recipe("{search: [1, 2], log: 3}"), "`log` is true or false"),
        (recipe("{search: [1, 2], step: 3}"), "`step` is a number above 0"),
        (recipe("{search: [1, 2], stp: 1}"), "a `search` has no key `stp`"),
        (recipe("{search: [1, 2], default: 3}"), "the `default` 3 of `experts.one.weight`"),
        (recipe("{search: [1, 2], choice: [1]}"), "a `search` has no key `choice`"),
        (recipe("{choice: []}"), "`choice` gives nothing to choose from"),
        (recipe("{choice: [1]}"), "`choice` gives one to choose from"),
        (recipe("{choice: [1, 1]}"), "`1` is among the choices twice"),
        (recipe("{choice: [{a: 1}, 2]}"), "a choice is a value or a list"),
        (recipe("1", more="seed: {search: [0, 3]}"), "`seed` is no parameter"),
        (recipe("1", more="output: {dtype: {choice: [a, b]}}"), "`output.dtype` is no parameter"),
        (
            recipe("1", more="stages: {s: {steps: [{ties: {density: {search: [0, 1]}}}]}}"),
            "`stages.s.steps.0.ties.density` is no parameter",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(RecipeError) as caught:
        found_in(tmp_path, text)
    assert any(what in problem.what for problem in caught.value.problems), caught.value
    assert all("recipe.yaml:" in problem.where for problem in caught.value.problems)


def test_experts_may_be_called_as_the_words_are(tmp_path: Path) -> None:
    text = """\
base: ./base
experts: {search: ./one, choice: ./two}
steps: [{ties: {density: {search: 0.5, choice: 0.3}}}]
"""
    assert found_in(tmp_path, text) == ()
    assert load(tmp_path / "recipe.yaml").steps[0].params == {
        "density": {"search": 0.5, "choice": 0.3}
    }


SEARCH = "search: {{data: {{german: g.txt}}, objectives: [{{data: german, {}}}]}}"


@pytest.mark.parametrize(
    ("more", "what", "hint"),
    [
        ("search: 3", "`search` must be a mapping", "data"),
        ("search: {dta: {}}", "unknown key `dta` in `search`", "`data`"),
        ("search: {data: [a]}", "data maps names to files", "german"),
        ("search: {test: {a: 3}}", "the data `a` must be a file's name", ""),
        ("search: {objectives: 3}", "`objectives` is no list", "bits_per_byte"),
        ("search: {objectives: [3]}", "the objective must be a mapping", ""),
        (SEARCH.format("score: bits"), "no score is called `bits`", "there are"),
        (SEARCH.format("against: base"), "the objective has no `score`", ""),
        (SEARCH.format("score: kl"), "`kl` compares with another model", "against: base"),
        (SEARCH.format("score: kl, against: on"), "`against: on` is neither", "`one`"),
        (SEARCH.format("score: accuracy, against: one"), "compares with nobody", "recovery"),
        (SEARCH.format("score: accuracy, weight: 0"), "must be a number above 0", ""),
        ("search: {objectives: [{data: x, score: accuracy}]}", "`search.data` has no `x`", ""),
    ],
)
def test_what_is_wrong_with_the_objectives_is_told(
    tmp_path: Path, more: str, what: str, hint: str
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe("1", more=more))
    with pytest.raises(RecipeError) as caught:
        load(file)
    said = [problem for problem in caught.value.problems if what in problem.what]
    assert said, caught.value
    assert said[0].where.split(":")[-2] == "4"
    assert hint in said[0].hint


def test_objectives_are_read_and_files_follow_a_recipe_to_another_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "recipe.yaml").write_text(
        recipe("1", more="search: {data: {a: ./a.txt}, test: {b: ./b.txt}, windows: 3}")
    )
    (tmp_path / "outer.yaml").write_text("extends: inner/recipe.yaml\n")
    found: Any = load(tmp_path / "outer.yaml").search
    assert (found.data, found.test) == ({"a": "./inner/a.txt"}, {"b": "./inner/b.txt"})
    assert (found.windows, found.objectives) == (3, ())
    again: Any = load(load(tmp_path / "outer.yaml").plain()).search
    assert again == found
