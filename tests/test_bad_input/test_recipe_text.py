"""Recipes that are wrong as text: keys, values, ranges, documents."""

from __future__ import annotations

import pytest
import torch

from mergekit_lite import api
from mergekit_lite.errors import RecipeError
from tests.checkpoints import write_weights

from .conftest import LINEAR, World

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + inner] * 10)}]\n"
    for inner, name in zip("abcde", "bcdef", strict=True)
)
"""Six short lines that stand for a million values."""


def test_unknown_op(world: World) -> None:
    text = LINEAR.replace("task_arithmetic: {lambda: 0.8}", "dare-ties: {density: 0.5}")
    world.refused(
        2, "recipe.yaml:6:5", "unknown op `dare-ties`", "did you mean `dare_ties`?", text=text
    )


def test_unknown_op_unlike_any(world: World) -> None:
    text = LINEAR.replace("task_arithmetic: {lambda: 0.8}", "zzz")
    world.refused(2, "unknown op `zzz`", "mergekit-lite ops list", text=text)


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("experts:", "exprets:", "2:1", "did you mean `experts`?"),
        ("weight: 0.5}\n  code", "weigth: 0.5}\n  code", "3:23", "did you mean `weight`?"),
        ("lambda", "lamda", "6:23", "did you mean `lambda`?"),
        ("steps:", "normalize: true\nsteps:", "5:1", "`normalize` is a parameter of"),
        ("{lambda: 0.8}", "{seed: 1}", "6:23", "`seed` belongs at the top of the recipe"),
        ("steps:", "random_seed: 3\nsteps:", "5:1", "here this is called `seed`"),
        ("steps:", "dtype: float16\nsteps:", "5:1", "under `output`"),
        ("steps:", "density: 0.5\nsteps:", "5:1", "`density` is a parameter of"),
        ("steps:", "role: norm\nsteps:", "5:1", "in a rule's match"),
        ("steps:", "output: {dtyp: float16}\nsteps:", "5:10", "did you mean `dtype`?"),
        ("steps:", "rules: [{mach: '*', take: base}]\nsteps:", "5:10", "did you mean `match`?"),
    ],
)
def test_misspelt_and_misplaced_keys(
    world: World, old: str, new: str, place: str, says: str
) -> None:
    assert old in LINEAR
    world.refused(2, f"recipe.yaml:{place}", says, text=LINEAR.replace(old, new, 1))


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("magnitude: {density: 1.7}", ("`density`", "1.7", "0 < density <= 1")),
        ("magnitude: {density: -0.1}", ("`density`", "-0.1", "0 < density <= 1")),
        ("dare: {density: 0}", ("`density`", "0")),
        ("magnitude: {density: half}", ("`density`", "half", "a number")),
        ("magnitude: {density: .nan}", ("`density`", "nan")),
        ("breadcrumbs: {density: 0.5, gamma: 1}", ("`gamma`", "1")),
        ("breadcrumbs: {density: 0.5, gamma: 1.5}", ("`gamma`", "1.5")),
        ("magnitude: {density: [0.2, 1.7]}", ("`density`", "1.7")),
        ("magnitude: {density: {math: 0.5, code: 7}}", ("`density`", "7")),
    ],
)
def test_values_out_of_range(world: World, step: str, says: tuple[str, ...]) -> None:
    text = LINEAR.replace("  - task", f"  - {step}\n  - task")
    world.refused(2, "recipe.yaml:6:", *says, text=text)


def test_unknown_dtype_lists_the_known_ones(world: World) -> None:
    text = LINEAR + "output: {dtype: bfloat}\n"
    world.refused(
        2, "recipe.yaml:7:17", "bfloat", "base", "bfloat16", "float16", "float32", text=text
    )


@pytest.mark.parametrize("size", ["1.5B", "5XB", "lots", "0", "-5GB", "0.0003kB"])
def test_sizes_that_are_none(world: World, size: str) -> None:
    said = (f"`{size}` is not a size in bytes", "5GB", "5GiB")
    world.refused(2, "--shard-size", *said, words=(f"--shard-size={size}",))
    world.refused(2, "recipe.yaml:7:22", *said, text=LINEAR + f"output: {{shard_size: {size}}}\n")


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [("5GB", 5 * 10**9), ("5GiB", 5 << 30), ("500MB", 5 * 10**8), ("1.5kB", 1500)],
)
def test_sizes_that_are_understood(world: World, size: str, bytes_: int) -> None:
    result = world.call("plan", world.write(LINEAR), "--shard-size", size, "--json")
    assert result.exit_code == 0
    assert f'"shard_size": {bytes_}' in result.stdout


def test_recipe_of_mergekit(world: World) -> None:
    text = """\
merge_method: dare-ties
base_model: base
models:
  - {model: math, parameters: {weight: 0.5, density: 0.5}}
  - {model: code, parameters: {weight: 0.5, density: 0.5}}
dtype: bfloat16
"""
    said = world.refused(2, "recipe.yaml:1:15", "did you mean `dare_ties`?", text=text)
    assert "unknown merge method `dare-ties`" in said


def test_recipe_that_assembles_experts(world: World) -> None:
    text = """\
base_model: base
gate_mode: guessed
experts:
  - {source_model: math, positive_prompts: [sums]}
"""
    world.refused(2, "recipe.yaml:2:12", "unknown `gate_mode: guessed`", text=text)


def test_several_documents(world: World) -> None:
    text = LINEAR + "---\n" + LINEAR
    world.refused(2, "recipe.yaml:8", "2 YAML documents", "each recipe in its own file", text=text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the recipe is empty"),
        ("- a\n- b\n", "recipe"),
        ("base: [unclosed\n", "not valid YAML"),
        ("base: base\n\texperts: {}\n", "a tab"),
        (LINEAR + "base: math\n", "`base` is given twice"),
        (LINEAR + "seed: &s [*s]\n", "stands inside the value it names"),
        ("base: !!python/name:os.system x\n", "the YAML tag `!!python/name:os.system`"),
        (BOMB, "more than 50,000 values"),
    ],
)
def test_text_that_is_no_recipe(world: World, text: str, says: str) -> None:
    world.refused(2, "recipe.yaml", says, text=text)


def test_bytes_that_are_no_text(world: World) -> None:
    path = world.folder / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00base")
    before = world.files()
    world.said(world.call("run", path, "-o", world.out), 2, "recipe.yaml")
    world.untouched(before)


def test_no_such_recipe(world: World) -> None:
    world.write(LINEAR)
    before = world.files()
    world.said(world.call("run", "recip.yaml", "-o", world.out), 2, "recip.yaml", "recipe.yaml")
    world.untouched(before)


def test_a_folder_in_place_of_a_recipe(world: World) -> None:
    world.said(world.call("run", "base", "-o", world.out), 2, "base", "is a folder", "YAML file")


def test_three_errors_are_told_at_once_from_headers_alone(world: World) -> None:
    text = LINEAR.replace("lambda", "lamda").replace("weight: 0.5}\n  code", "weight: x}\n  code")
    said = world.refused(2, "error: 3 problems", text=text + "output: {dtype: bfloat}\n")
    for place in ("recipe.yaml:3:31", "recipe.yaml:6:23", "recipe.yaml:7:17"):
        assert place in said


def test_a_wrong_text_does_not_hide_wrong_models(world: World) -> None:
    write_weights(world.math, {"a": torch.zeros(2, 2, dtype=torch.float8_e4m3fn)})
    text = """\
base: base
experts:
  math: {model: math, weigth: 0.5}
  gone: ./nope
steps:
  - magnitude: {density: 3}
  - task_arithmetic
"""
    said = world.refused(2, "error: 4 problems", "weigth", "density", "/nope`", "fp8", text=text)
    for place in ("recipe.yaml:3:23", "recipe.yaml:6:26", "recipe.yaml:4:9", "recipe.yaml:3:9"):
        assert place in said


def test_a_wrong_text_does_not_hide_damage_which_outranks_it(world: World) -> None:
    (world.math / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0oops")
    world.refused(3, "error: 2 problems", "lamda", "math", text=LINEAR.replace("lambda", "lamda"))


@pytest.mark.parametrize("base", ["", "base: ''\n", "base: 3\n"])
def test_models_are_looked_at_where_the_base_cannot_be_told(world: World, base: str) -> None:
    text = LINEAR.replace("base: base\n", base).replace("model: code", "model: nope")
    world.refused(2, "error: 2 problems", "nope", text=text)


def test_wrong_text_through_the_interface(world: World) -> None:
    recipe = {"base": "base", "experts": {"a": {"lora": "math"}, "b": "nope"}, "steps": ["tie"]}
    for call in (api.plan, lambda data: api.run(data, world.out)):
        with pytest.raises(RecipeError) as caught:
            call(recipe)
        every = str(caught.value)
        assert len(caught.value.problems) == 3
        assert "unknown op `tie`" in every
        assert "whole model, not a LoRA" in every
        assert "nope" in every
    with pytest.raises(RecipeError) as caught:
        api.load(recipe)
    assert len(caught.value.problems) == 1


def test_three_misfits_are_told_at_once_from_headers_alone(world: World) -> None:
    text = LINEAR.replace("model: code", "model: nowhere") + (
        "rules:\n  - {match: '*.rotary.*', drop: true}\n  - {match: {layers: 1-40}, take: base}\n"
    )
    said = world.refused(5, "nowhere", text=text)
    for place in ("recipe.yaml:4:", "recipe.yaml:8:", "recipe.yaml:9:"):
        assert place in said
