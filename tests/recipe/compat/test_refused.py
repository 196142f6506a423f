"""What people really get wrong in a mergekit recipe, and what they are told."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import pytest

from mergekit_lite.errors import Problem
from mergekit_lite.recipe import Recipe

Refused = Callable[..., list[Problem]]

GOOD = """
merge_method: ties
base_model: ./base
models:
  - model: ./a
    parameters: {weight: 0.5, density: 0.5}
dtype: bfloat16
"""


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "where", "what", "hint"),
    [
        (
            changed(": ties", ": dare-ties"),
            "1:15",
            "unknown merge method `dare-ties`",
            "did you mean `dare_ties`?",
        ),
        (changed("parameters", "paramters"), "5:5", "unknown key `paramters`", "`parameters`"),
        (changed("weight", "weigth"), "5:18", "unknown parameter `weigth`", "`weight`"),
        (
            changed("dtype", "normalise: true\ndtype"),
            "6:1",
            "unknown key `normalise`",
            "known here",
        ),
        (
            changed("dtype", "normalize: true\ndtype"),
            "6:1",
            "unknown key `normalize`",
            "parameters: {normalize: true}",
        ),
        (
            changed("dtype", "parameters: {random_seed: 7}\ndtype"),
            "6:14",
            "unknown parameter `random_seed`",
            "`seed: 0`",
        ),
        (changed("dtype", "random_seed: 7\ndtype"), "6:1", "`random_seed`", "called `seed`"),
        (
            changed("parameters: {weight: 0.5, density: 0.5}", "weight: 0.5"),
            "5:5",
            "unknown key `weight` in `models`",
            "parameters: {weight: 0.5}",
        ),
        (
            changed("density: 0.5", "density: 1.7"),
            "5:40",
            "`density` of `ties` is 1.7, outside its range",
            "allowed is 0 < density <= 1",
        ),
        (changed("density: 0.5", "density: -1"), "5:40", "is -1, outside", "0 < density"),
        (changed("density: 0.5", "density: much"), "5:40", "must be a number", ""),
        (
            changed("bfloat16", "bfloat"),
            "6:8",
            "unknown dtype `bfloat`",
            "did you mean `bfloat16`?",
        ),
        (changed("bfloat16", "float64"), "6:8", "`float64` is not supported", "`float32`"),
        (changed("bfloat16", "int8"), "6:8", "unknown dtype `int8`", "float32"),
        (changed("bfloat16", "[x]"), "6:8", "must be the name of a dtype", "float16"),
        (
            changed("base_model: ./base\n", ""),
            "1:1",
            "`ties` needs `base_model`",
            "add `base_model",
        ),
        (
            changed("weight: 0.5, ", ""),
            "4:5",
            "`ties` needs `weight` for `./a`",
            "with the model",
        ),
        (
            changed("weight: 0.5", "weight: [{filter: mlp, value: 0.5}]"),
            "5:48",
            "`weight` for `./a` has a value only where a filter fits",
            "`- value: 0.5`",
        ),
        (
            changed("weight: 0.5", "weight: [{filter: mlp, valeu: 0.5}]"),
            "5:41",
            "unknown key `valeu` in `weight`",
            "`value`",
        ),
        (changed("weight: 0.5", "weight: [{value: 1}, 2]"), "5:26", "mixes values", "filter"),
        (changed("weight: 0.5", "weight: {value: {a: 1}}"), "5:34", "a number or a list", ""),
        (changed("weight: 0.5", "weight: {filter: 3, value: 1}"), "5:26", "tensor's name", ""),
        (
            changed("dtype", "parameters: {normalize: maybe}\ndtype"),
            "6:25",
            "`normalize` must be true or false, not `maybe`",
            "",
        ),
        (
            changed("dtype", "parameters: {rescale: true}\ndtype"),
            "6:23",
            "`rescale: true` is not supported with `ties`",
            "remove it",
        ),
        (
            changed("models:", "slices: []\nmodels:"),
            "3:1",
            "the recipe has `models` and `slices`",
            "exactly one",
        ),
        (GOOD[: GOOD.index("models")], "1:1", "names no models", "write `models"),
        (changed("- model: ./a", "- model: [x]"), "4:12", "a model is a name or a path", ""),
        (changed("- model: ./a", "- model: a+b+c"), "4:12", "`a+b+c` is no model", "+adapter"),
        (changed("- model: ./a", "- model: a@b@c"), "4:12", "two `@`", "org/name"),
        (changed("- model: ./a", "- modle: ./a"), "4:5", "unknown key `modle`", "`model`"),
        (changed("- model: ./a", "- ./x\n  - model: ./a"), "4:5", "`models` is not", "write"),
        (changed("- model: ./a", "- model: {path: x}"), "4:12", "names no model", "org/name"),
        (
            changed("dtype", "  - {model: ./a, parameters: {weight: 1}}\ndtype"),
            "6:13",
            "`./a` is listed twice",
            "remove one",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    refused: Refused, text: str, where: str, what: str, hint: str
) -> None:
    found = refused(text)
    (problem,) = [p for p in found if what in p.what]
    assert problem.where == f"merge.yml:{where}"
    assert hint in problem.hint


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("merge_method: linear\nmodels: 3", "`models` is not what it should be"),
        ("merge_method: [x]\nmodels: [{model: a}]", "unknown merge method `[x]`"),
        ("models: [{model: a}]", "no `merge_method`"),
        ("merge_method: ties\nbase_model: b\nmodels: []", "`models` is empty"),
        ("merge_method: ties\nbase_model: 3\nmodels: [{model: a}]", "a model is a name"),
        ("merge_method: linear\nmodels: [{model: a, parameters: 3}]", "`linear` needs `weight`"),
        ("merge_method: linear\nparameters: 3\nmodels: [{model: a}]", "must be a mapping"),
        ("merge_method: slerp\nbase_model: b\nmodels: [{model: a}]", "`slerp` needs `t`"),
        (
            "merge_method: slerp\nbase_model: b\nparameters: {t: 1}\n"
            "models: [{model: a}, {model: c}]",
            "`slerp` takes 1 model besides `base_model`, here are 2",
        ),
        (
            "merge_method: passthrough\nbase_model: b\nmodels: [{model: a}]",
            "`passthrough` takes 1 model, here are 2",
        ),
        (
            "merge_method: linear\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]",
            "`linear` needs `weight` for `b`",
        ),
        ("merge_method: ties\nbase_model: b\nmodels: [{model: b}]", "at least 1 model besides"),
    ],
)
def test_what_cannot_be_merged_is_said(refused: Refused, text: str, what: str) -> None:
    assert any(what in problem.what for problem in refused(text))


def test_all_is_told_at_once(refused: Refused) -> None:
    found = refused(
        """
        merge_method: ties
        base_modle: ./base
        models:
          - model: ./a
            parameters: {weigth: 0.5, density: 7}
        dtype: bf16
        """
    )
    assert [(p.where.partition(":")[2], p.what) for p in found] == [
        ("1:1", "`ties` needs `base_model`: the model that all others were made from"),
        ("2:1", "unknown key `base_modle`"),
        ("4:5", "`ties` needs `weight` for `./a`"),
        ("5:18", "unknown parameter `weigth`"),
        ("5:40", "`density` of `ties` is 7, outside its range"),
        ("6:8", "unknown dtype `bf16`"),
    ]


def test_a_search_is_another_commands_recipe(refused: Refused) -> None:
    (problem,) = refused("genome: {models: [a, b], merge_method: dare_ties}\ntasks: []\n")
    assert "`mergekit-evolve`" in problem.what


def test_what_mergekit_reads_past_is_read_past_and_said(read: Callable[..., Recipe]) -> None:
    """Model cards carry such lines; refusing them would help nobody."""
    recipe = read(
        dedent("""
        merge_method: slerp
        base_model: ./base
        models:
          - model: ./base
            parameters: {weight: 1}
            layer_range: [0, 32]
          - model: ./a
            parameters: {t: 0.1}
        parameters: {t: 0.5, normalize: true, embed_slerp: true, int8_mask: true}
        """)
    )
    assert [note.partition(": ")[0] for note in recipe.notes] == [
        f"merge.yml:{place}" for place in ("5:18", "6:5", "8:18", "9:22", "9:39", "9:58")
    ]
    assert "`layer_range` is left out, as mergekit does" in recipe.notes[1]
    assert "it holds for all" in recipe.notes[2]
    assert recipe.steps[0].params == {"t": 0.5}
