"""What a recipe may say, and what is said about one that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.recipe import Recipe, load, parse_size

Read = Callable[..., Recipe]
Refused = Callable[..., list[Problem]]

FULL = """
    # a comment
    schema_version: 1
    base: org/base@main
    experts:
      math: {model: org/base-math, weight: 0.5}
      code: {model: ./code, weight: [2e-1, 0.6], steps: [{dare: {density: 0.5}}]}
      chat: {lora: org/base-chat-lora, weight: 1e-3}
      plain: ./plain
    steps:
      - magnitude: {density: {math: 0.2, default: [0.1, 0.3]}}
      - sign_consensus
      - scale: {lambda: 1}
    rules:
      - {match: {layers: "0-4,7"}, take: chat}
      - {match: {layers: 5}, steps: [{linear: {weights: {math: 0.5, chat: 0.5}}}]}
      - {match: {role: norm, name: "*.weight"}, take: base}
      - {match: "*.rotary_emb.*", drop: true}
      - {match: "*", set: {magnitude.density: 0.5, lambda: 0.9, weight: {math: 1, base: 0}}}
    tokenizer: {source: base}
    output: {dtype: bfloat16, shard_size: 500MB}
    seed: 3
    compat: mergekit
    allow_missing: ["*.bias"]
    extra: drop
"""
SMALL = "base: ./b\nexperts: {math: ./m, code: ./c}\nsteps: [ties]\n"


def test_everything_a_recipe_can_say(read: Read, tmp_path: Path) -> None:
    recipe = read(FULL)
    assert recipe.base == "org/base@main"
    assert list(recipe.experts) == ["math", "code", "chat", "plain"]
    assert recipe.experts["code"].weight == (0.2, 0.6)
    assert recipe.experts["code"].steps[0].params == {"density": 0.5}
    assert recipe.experts["chat"].lora == recipe.experts["chat"].reference == "org/base-chat-lora"
    assert recipe.experts["chat"].weight == 0.001
    assert recipe.experts["plain"].model == "./plain"
    assert recipe.experts["plain"].weight is None
    assert recipe.steps[0].params == {"density": {"math": 0.2, "default": [0.1, 0.3]}}
    assert [rule.action for rule in recipe.rules] == ["take", "steps", "take", "drop", "set"]
    assert recipe.rules[0].match.layers == ((0, 4), (7, 7))
    assert recipe.output.shard_size == 500_000_000
    assert (recipe.seed, recipe.compat, recipe.extra) == (3, "mergekit", "drop")
    assert recipe.allow_missing == ("*.bias",)
    assert (recipe.name, recipe.folder) == ("recipe.yaml", tmp_path)


def test_defaults(read: Read) -> None:
    recipe = read(SMALL)
    assert (recipe.output.dtype, recipe.output.shard_size) == ("base", 5_000_000_000)
    assert (recipe.seed, recipe.compat, recipe.extra) == (0, "none", "error")
    assert (recipe.rules, recipe.allow_missing, recipe.tokenizer.source) == ((), (), None)


def test_places(read: Read) -> None:
    recipe = read(FULL)
    assert recipe.at("base") == "recipe.yaml:3:7"
    assert recipe.at("steps", 0) == "recipe.yaml:10:5"
    assert recipe.at("steps", 0, "magnitude", "density") == "recipe.yaml:10:26"
    assert recipe.at("rules", 0, "match", "layers") == "recipe.yaml:14:22"
    assert recipe.at("rules", 0, "match", "nothing") == "recipe.yaml:14:13"
    assert recipe.at("nothing") == "recipe.yaml:2:1"
    assert recipe.steps[1].where == "recipe.yaml:11:5"
    assert recipe.rules[1].where == "recipe.yaml:15:5"
    assert recipe.rules[1].steps is not None
    assert recipe.rules[1].steps[0].where == "recipe.yaml:15:35"
    assert recipe.experts["chat"].where == "recipe.yaml:7:3"


@pytest.mark.parametrize("text", [FULL, SMALL])
def test_plain_data_is_the_same_recipe(read: Read, text: str) -> None:
    recipe = read(text)
    plain = json.loads(json.dumps(recipe.plain()))
    assert plain == recipe.plain()
    again = load(plain)
    assert again.plain() == plain
    assert [s.params for s in again.steps] == [s.params for s in recipe.steps]
    assert "extends" not in plain
    assert again.at("steps", 0).startswith("recipe:steps.0")


def test_a_recipe_is_frozen(read: Read) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(SMALL).seed = 4


def test_plain_data_is_checked_too(specs: Any, tmp_path: Path) -> None:
    data = {"base": tmp_path, "experts": {"a": "./a", 3: "./b"}, "steps": ["ties"]}
    with pytest.raises(RecipeError, match="the key 3 is not text"):
        load(data)
    with pytest.raises(RecipeError, match="a set cannot stand in a recipe"):
        load({"base": {1}, "steps": ["ties"]})
    data = {"base": tmp_path, "experts": {"a": "./a"}, "steps": [{"ties": {"densty": "1e-1"}}]}
    with pytest.raises(RecipeError) as caught:
        load(data)
    assert caught.value.problems[0].where == "recipe:steps.0.ties.densty"
    data["steps"] = ("ties",)
    assert load(data).base == str(tmp_path)


def test_all_problems_at_once_in_reading_order(refused: Refused) -> None:
    problems = refused(
        """
        base: ./b
        experts:
          math: {model: ./m, weigth: 0.5}
        steps:
          - magnitude: {density: 1.7}
          - sign_consensus
          - scal: {lambda: 1}
        output: {dtype: bfloat}
        """
    )
    assert [(p.where, p.what, p.hint) for p in problems] == [
        (
            "recipe.yaml:3:22",
            "unknown key `weigth` in `experts.math`",
            "did you mean `weight`?",
        ),
        (
            "recipe.yaml:5:26",
            "`density` of `magnitude` is 1.7, outside its range",
            "allowed is 0 < density <= 1",
        ),
        ("recipe.yaml:7:5", "unknown op `scal`", "did you mean `scale`?"),
        (
            "recipe.yaml:8:17",
            "`output.dtype` must be `base`, `bfloat16`, `float16` or `float32`, not `bfloat`",
            "did you mean `bfloat16`?",
        ),
    ]


@pytest.mark.parametrize(
    ("line", "where", "what", "hint"),
    [
        ("normalize: true", "4:1", "unknown key `normalize`", "is a parameter of `linear`"),
        ("random_seed: 3", "4:1", "unknown key `random_seed`", "called `seed`"),
        ("dtype: bfloat16", "4:1", "unknown key `dtype`", "under `output`"),
        ("shard_size: 5GB", "4:1", "unknown key `shard_size`", "under `output`"),
        ("sede: 3", "4:1", "unknown key `sede`", "did you mean `seed`?"),
        ("ties: {}", "4:1", "unknown key `ties`", "is an op: `steps: [{ties: ...}]`"),
        ("where: x", "4:1", "unknown key `where`", "known here: `schema_version`"),
        ("name: x", "4:1", "unknown key `name`", ""),
        ("seed: -1", "4:7", "`seed` must be at least 0, not `-1`", ""),
        ("seed: '7'", "4:7", "`seed` must be a whole number, not the text `7`", "the quotes"),
        ("seed: 1.5", "4:7", "`seed` must be a whole number, not `1.5`", ""),
        ("seed: true", "4:7", "`seed` must be a whole number", ""),
        ("seed: .nan", "4:7", "`seed` must be a whole number", ""),
        ("seed: .inf", "4:7", "`seed` must be a whole number", ""),
        ("schema_version: 2", "4:17", "`schema_version` must be 1, not `2`", ""),
        ("compat: mergkit", "4:9", "`compat` must be `none` or `mergekit`", "`mergekit`?"),
        ("extra: ignore", "4:8", "`extra` must be `error` or `drop`", ""),
        ("allow_missing: x", "4:16", "`allow_missing` must be a list", "['*.bias']"),
        ("allow_missing: [3]", "4:17", "`allow_missing.0` must be text", ""),
        ("output: bfloat16", "4:9", "`output` must be a mapping", "{dtype: bfloat16}"),
        ("rules: {}", "4:8", "`rules` must be a list", "match"),
        ("moe: 3", "4:6", "`moe` must be a mapping", "gate: random"),
        ("moe: {gate: {}}", "4:13", "`moe.gate` names no method", "gate: random"),
        ("moe: {shared: rnd}", "4:15", "`moe.shared: rnd` is no input", "known here"),
        ("output: {push: {}}", "4:10", "`output.push` (uploading the result) is not", "remove"),
        ("output: {quantize: {}}", "4:20", "`output.quantize.scheme` is missing", ""),
        ("output: {quantize: W4A61}", "4:20", "not `W4A61`", "W4A16"),
        ("output: {quantize: {scheme: FP8, ignore: ['re:(']}}", "4:43", "no regular", "repair"),
        (
            "output: {quantize: {scheme: FP8, group: 3}}",
            "4:34",
            "unknown key `group`",
            "group_size",
        ),
        ("output: {quantize: [FP8]}", "4:20", "must be a scheme's name or a mapping", "FP8_D"),
        ("output: {push: {}}", "4:10", "`output.push` (uploading the result) is not", ""),
        ("output: {shard_size: 5XB}", "4:22", "`5XB` is not a size in bytes", "500MB"),
        (
            "output: {shard_size: 1.5B2}",
            "4:22",
            "`1.5B2` is not a size",
            "5GB (5 x 10^9 bytes), 5GiB",
        ),
        ("output: {shard_size: 0}", "4:22", "`0` is not a size in bytes", "500MB"),
        ("tokenizer: base", "4:12", "`tokenizer` must be a mapping", "{source: base}"),
    ],
)
def test_one_wrong_line(refused: Refused, line: str, where: str, what: str, hint: str) -> None:
    (problem,) = refused(SMALL + line)
    assert problem.where == f"recipe.yaml:{where}"
    assert what in problem.what
    assert hint in problem.hint


@pytest.mark.parametrize(
    ("experts", "where", "what"),
    [
        ("{base: ./x}", "2:11", "no expert can be called `base`"),
        ("{default: ./x}", "2:11", "no expert can be called `default`"),
        ("{'a b': ./x}", "2:11", "`a b` is no name for an expert"),
        ("{a: 3}", "2:14", "the expert `a` must be a model or a mapping, not a number"),
        ("{a: {weight: 1}}", "2:11", "the expert `a` names no model"),
        ("{a: {model: ./a, lora: ./l}}", "2:11", "has both `model` and `lora`"),
        ("{a: {model: 3}}", "2:22", "`model` of the expert `a` must be text, not a number"),
        ("{a: {model: ./a, weight: heavy}}", "2:35", "`weight` of `experts.a` must be a number"),
        ("{a: {model: ./a, weight: [1, x]}}", "2:39", "`weight` of `experts.a` must be a number"),
        ("{a: {model: ./a, weight: []}}", "2:35", "the gradient for `weight` is empty"),
        ("{a: {model: ./a, weight: .nan}}", "2:35", "must be a finite number"),
        ("{a: {model: ./a, weight: 1e39}}", "2:35", "`weight` of `experts.a` is 1e+39, too large"),
        ("{a: {model: ./a, weight: [0, -4e38]}}", "2:39", "is -4e+38, too large for fp32"),
        ("{a: {model: ./a, weight: -.inf}}", "2:35", "must be a finite number"),
        ("{a: {model: ./a, weight: '0.5'}}", "2:35", "must be a number, not the text `0.5`"),
        ('{a: {model: ./a, weight: [1, "1e-1"]}}', "2:39", "not the text `1e-1`"),
        ("{a: {model: ./a, weight: {a: 1}}}", "2:35", "takes one value, not one for each"),
        ("{a: '@inner'}", "2:14", "there is no stage `inner`"),
        ("{a: ''}", "2:14", "the model's name is empty"),
        ("[./a, ./b]", "2:10", "`experts` must be a mapping, not a list"),
        ("{a: {model: ./a, steps: [linear]}}", "2:35", "an expert's own steps are transforms"),
        ("{a: {model: ./a, steps: [ties]}}", "2:35", "`sign_consensus` (from `ties`) is a combine"),
    ],
)
def test_wrong_experts(refused: Refused, experts: str, where: str, what: str) -> None:
    problems = refused(f"base: ./b\nexperts: {experts}\nsteps: [{{take: {{expert: base}}}}]")
    problems = [p for p in problems if "whole weights" not in p.what]
    assert {problem.where for problem in problems} == {f"recipe.yaml:{where}"}
    assert what in problems[0].what


@pytest.mark.parametrize(
    ("chain", "where", "what"),
    [
        ("[task_arithmetic, {scale: {lambda: 1e39}}]", "3:43", "`lambda` of `scale` is 1e+39"),
        ("[task_arithmetic, {scale: {lambda: .nan}}]", "3:43", "must be a finite number"),
        ("[task_arithmetic, {scale: {lambda: '1e-1'}}]", "3:43", "not the text `1e-1`"),
        ("[{linear: {weights: {math: 1e39}}}]", "3:35", "`weights` of `linear` is 1e+39"),
    ],
)
def test_numbers_that_fp32_cannot_hold(refused: Refused, chain: str, where: str, what: str) -> None:
    (problem,) = refused(f"base: ./b\nexperts: {{math: ./m}}\nsteps: {chain}\n")
    assert problem.where == f"recipe.yaml:{where}"
    assert what in problem.what


def test_the_largest_number_of_fp32_and_text_in_plain_data(read: Read) -> None:
    recipe = read("base: ./b\nexperts: {a: {model: ./a, weight: 3.4028234e38}}\nsteps: [linear]")
    assert recipe.experts["a"].weight == 3.4028234e38
    # Readers of YAML 1.1 hand an unquoted 1e-1 over as text.
    data = {"base": "b", "experts": {"a": {"model": "a", "weight": "1e-1"}}, "steps": ["linear"]}
    assert load(data).experts["a"].weight == 0.1


def test_places_are_spelt_as_the_file_was_named(
    specs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "recipes/under.yaml": "base: ./b\nexperts: {a: ./a}\nsteps: [tise]\n",
        "recipes/top.yaml": "extends: under.yaml\nsed: 1\n",
        "work/x": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def places(name: str | Path) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            load(name)
        return [problem.where for problem in caught.value.problems]

    monkeypatch.chdir(tmp_path)
    below = ["recipes/top.yaml:2:1", "recipes/under.yaml:3:9"]
    assert places("recipes/top.yaml") == places(tmp_path / "recipes/top.yaml") == below
    monkeypatch.chdir(tmp_path / "work")
    assert places("../recipes/top.yaml") == [f"../{place}" for place in below]
    assert places(tmp_path / "recipes/top.yaml") == [f"{tmp_path}/{place}" for place in below]


def test_what_is_missing(refused: Refused) -> None:
    problems = refused("seed: 1")
    assert {p.what for p in problems} == {"`base` is missing", "the recipe has no `steps`"}
    (problem,) = refused("base: ./b\nexperts: {a: ./a}\nsteps:\n")
    assert (problem.where, problem.what) == ("recipe.yaml:3:1", "the recipe has no `steps`")
    (problem,) = refused("base: ./b\nsteps: [task_arithmetic]\n")
    assert problem.what == "`task_arithmetic` takes at least 1 expert, here are 0"


def test_no_experts_where_none_is_needed(read: Read) -> None:
    assert read("base: ./b\nsteps: [{take: {expert: base}}]").experts == {}


@pytest.mark.parametrize("text", ["- a\n", "just words\n", "3\n"])
def test_not_a_mapping(refused: Refused, text: str) -> None:
    (problem,) = refused(text)
    assert problem.what.startswith("a recipe is a mapping of keys to values, this is ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "near.yaml").write_text("{}")
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    for name, what in (
        ("nope.yaml", "there is no recipe"),
        ("binary.yaml", "is not UTF-8 text"),
        ("", "is a folder, not a recipe"),
        ("nowhere/x.yaml", "there is no recipe"),
    ):
        with pytest.raises(RecipeError, match=what) as caught:
            load(tmp_path / name)
        assert caught.value.exit_code == 2
    with pytest.raises(RecipeError, match=r"near\.yaml"):
        load(tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("5GiB", 5 * 2**30),
        ("500MB", 5 * 10**8),
        ("500 mb", 5 * 10**8),
        ("1.5GB", 1_500_000_000),
        ("2TiB", 2 * 2**40),
        ("12", 12),
        (12, 12),
        ("7B", 7),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-5GB", "5 apples", "1.5G5", "5GBs", True, "0", "0.5", "1.5B"]
)
def test_no_sizes(text: Any) -> None:
    with pytest.raises(ValueError, match="byte"):
        parse_size(text)


def test_importing_takes_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, mergekit_lite.recipe as r; r.load({'base': 'b', 'experts': {'a': 'x'}, "
        "'steps': ['ties']}); print(sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
