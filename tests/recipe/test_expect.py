"""Bounds in a recipe: what is read, and what is refused where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe import load
from mergekit_lite.recipe.schema import Bound

HEAD = """\
base: ./base
experts: {math: ./math}
steps: [task_arithmetic]
"""


def read(folder: Path, text: str) -> Any:
    (folder / "recipe.yaml").write_text(HEAD + text)
    return load(folder / "recipe.yaml").expect


def test_bounds_are_read_with_their_places(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """\
expect:
  data: {german: german.txt}
  windows: 4
  bounds:
    - {data: german, score: bits_per_byte, at_most: 1.5}
    - {data: german, score: recovery, against: math, at_least: 9e-1, confidence: 0}
""",
    )
    first, second = found.bounds
    assert first == Bound(data="german", score="bits_per_byte", at_most=1.5, where=first.where)
    assert first.where.endswith("recipe.yaml:8:7")
    assert (second.against, second.at_least, second.confidence) == ("math", 0.9, 0.0)
    assert (found.windows, found.window_bytes, found.baseline) == (4, 512, None)
    again = load(load(tmp_path / "recipe.yaml").plain()).expect
    assert again is not None
    assert again.data == found.data
    assert [b.score for b in again.bounds] == ["bits_per_byte", "recovery"]


def bound(inner: str, more: str = "") -> str:
    return f"expect: {{data: {{german: g.txt}}, {more}bounds: [{{data: german, {inner}}}]}}"


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("expect: 3", "`expect` must be a mapping", "data"),
        ("expect: {}", "`expect` names no `data`", "german"),
        ("expect: {data: {g: g.txt}}", "`expect` has no `bounds`", "bounds:"),
        ("expect: {data: {g: g.txt}, bounds: 3}", "no list of bounds", "bounds:"),
        ("expect: {data: {g: g.txt}, bounds: [3]}", "the bound must be a mapping", ""),
        ("expect: {data: {g: 3}, bounds: []}", "the data `g` must be a file's name", ""),
        ("expect: {data: [], bounds: []}", "`data` maps names to files", ""),
        ("expect: {dta: {}}", "unknown key `dta` in `expect`", "`data`"),
        (bound("score: bits, at_most: 1"), "no score is called `bits`", "there are"),
        (bound("score: bits_per_bite, at_most: 1"), "no score is", "`bits_per_byte`"),
        (bound("at_most: 1"), "the bound has no `score`", ""),
        (bound("score: bits_per_byte"), "the bound has no `at_most`", ""),
        (bound("score: accuracy, at_most: 1"), "`at_most` bounds nothing", "at_least"),
        (bound("score: accuracy, at_least: x"), "must be a number, not `x`", ""),
        (bound("score: accuracy, at_least: .nan"), "must be a number, not `nan`", ""),
        (bound("score: accuracy, at_least: 1, most: 3"), "unknown key `most`", "at_most"),
        (bound("score: accuracy, at_least: 1, against: base"), "compares with nobody", "recovery"),
        (bound("score: recovery, at_least: 1"), "compares with another model", "against: base"),
        (bound("score: kl, at_most: 1, against: mth"), "`against: mth` is neither", "`math`"),
        (bound("score: recovery, at_least: 1, against: baseline"), "no `baseline`", "scores.json"),
        (
            bound("score: kl, at_most: 1, against: baseline", "baseline: s.json, "),
            "looks at each token",
            "take `base`",
        ),
        (
            bound("score: flips, at_most: 1, against: base, confidence: 2"),
            "confidence",
            "",
        ),
        (
            "expect: {data: {g: g.txt}, bounds: [{data: gg, score: accuracy, at_least: 1}]}",
            "`expect.data` has no `gg`",
            "",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    tmp_path: Path, text: str, what: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    said = [problem for problem in caught.value.problems if what in problem.what]
    assert said, caught.value
    assert said[0].where.split(":")[-2] == "4"
    assert hint in said[0].hint


def test_stages_expect_nothing(tmp_path: Path) -> None:
    stage = "stages: {one: {base: ./base, experts: {a: ./a}, steps: [linear], expect: {}}}"
    with pytest.raises(RecipeError, match="unknown key `expect`"):
        read(tmp_path, stage)


def test_files_of_another_folders_recipe_are_found_from_here(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    inner = bound("score: bits_per_byte, at_most: 1", "baseline: ./s.json, ").replace(
        "g.txt", "../g.txt"
    )
    (tmp_path / "common" / "under.yaml").write_text(HEAD + inner)
    (tmp_path / "over.yaml").write_text("extends: common/under.yaml\nexpect: {windows: 3}\n")
    found = load(tmp_path / "over.yaml").expect
    assert found is not None
    assert found.data == {"german": "./g.txt"}
    assert found.baseline == "./common/s.json"
    assert found.windows == 3
