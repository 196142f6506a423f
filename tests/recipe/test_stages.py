"""Stages in the text of a recipe: names, circles, what they inherit."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe import load

STAGE = "{base: x, experts: {a: y}, steps: [linear]}"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(write(folder, text))
    return [str(problem) for problem in caught.value.problems]


def test_a_stage_is_a_recipe_with_places_of_its_own(tmp_path: Path) -> None:
    text = (
        f"base: '@inner'\nsteps: [{{take: {{source: base}}}}]\nseed: 5\nstages:\n  inner: {STAGE}\n"
    )
    recipe = load(write(tmp_path, text))
    stage = recipe.stages["inner"]
    assert (stage.base, stage.seed, stage.output.dtype, stage.keep) == ("x", 5, "float32", False)
    assert stage.at("experts", "a") == f"{tmp_path / 'recipe.yaml'}:5:33"
    assert stage.folder == tmp_path
    assert load(recipe.plain()).plain() == recipe.plain()
    assert not stage.named


def test_a_stage_may_have_a_seed_a_dtype_and_more_of_its_own(tmp_path: Path) -> None:
    own = STAGE[:-1] + ", seed: 7, output: {dtype: base}, keep: true, compat: mergekit}"
    text = f"base: '@a'\nsteps: [{{take: {{source: base}}}}]\nseed: 5\nstages: {{a: {own}}}\n"
    stage = load(write(tmp_path, text)).stages["a"]
    assert (stage.seed, stage.output.dtype, stage.keep) == (7, "base", True)
    assert stage.compat == "mergekit"
    assert stage.named
    again = load(load(write(tmp_path, text)).plain()).stages["a"]
    assert (again.named, again.output.dtype) == (True, "base")


def test_changes_and_variables_reach_into_stages(tmp_path: Path) -> None:
    text = f"""base: '@a'
steps: [{{take: {{source: base}}}}]
vars: {{where: z}}
stages: {{a: {STAGE.replace(": x", ": '${where}'")}}}
"""
    stage = load(write(tmp_path, text), ["stages.a.output.dtype=float16"]).stages["a"]
    assert (stage.base, stage.output.dtype, stage.named) == ("z", "float16", True)


def test_references_of_stages_stay_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    stage = STAGE.replace("base: x", "base: ./x").replace("a: y", "a: ../y")
    (tmp_path / "deep" / "under.yaml").write_text(f"stages: {{a: {stage}}}\n")
    text = "extends: deep/under.yaml\nbase: '@a'\nsteps: [{take: {source: base}}]\n"
    found = load(write(tmp_path, text)).stages["a"]
    assert (found.base, found.experts["a"].model) == ("./deep/x", "./y")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: '@outter'\nstages: {outer: STAGE}", [
            "1:7: there is no stage `outter`", "did you mean `outer`?",
            "2:10: the stage `outer` is not used"]),
        ("base: '@x'", ["there is no stage `x`", "define it"]),
        ("base: b\nexperts: {e: {lora: '@a'}}\nstages: {a: STAGE}",
         ["2:21: a stage gives a model, not an adapter", "`model:`"]),
        ("base: '@a'\nstages: {a: 3}", ["must be a recipe, not a number"]),
        ("base: '@a'\nstages: [1]", ["`stages` must be a mapping", "there is no stage `a`"]),
        ("base: '@a'\nstages: {a: {base: x}}", ["the stage `a` has no `steps`"]),
        ("base: '@a'\nstages: {a: {base: x, steps: [lineer], experts: {e: f}}}", ["lineer"]),
        ("base: '@a'\nstages: {a: {base: x, stepz: 3, steps: [linear], experts: {e: f}}}",
         ["unknown key `stepz` in `stages.a`", "did you mean `steps`?"]),
        ("base: '@a'\nstages: {a: {base: x, tokenizer: {}, steps: [linear], experts: {e: f}}}",
         ["unknown key `tokenizer` in `stages.a`", "at the top"]),
        ("base: '@a'\nstages: {a: {base: x, keep: 3, steps: [linear], experts: {e: f}}}",
         ["stages.a.keep"]),
        ("base: '@a b'\nstages: {a b: STAGE}", ["no name for a stage"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_stages(tmp_path: Path, text: str, says: list[str]) -> None:
    steps = "steps: [{take: {source: base}}]"
    head, _, rest = text.partition("\n")
    told = "\n".join(refused(tmp_path, f"{head}\n{rest.replace('STAGE', STAGE)}\n{steps}\n"))
    for words in says:
        assert words in told


def test_circles_are_told_once_with_their_line(tmp_path: Path) -> None:
    text = """base: '@a'
steps: [{take: {source: base}}]
stages:
  a: {base: '@b', experts: {e: f}, steps: [linear]}
  b: {base: x, experts: {e: '@c'}, steps: [linear]}
  c: {base: '@a', experts: {e: f}, steps: [linear]}
"""
    (problem,) = refused(tmp_path, text)
    assert "6:13: stages use one another in a circle: a -> b -> c -> a" in problem
