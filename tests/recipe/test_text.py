from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe.text import number, parse

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
KEYS = st.text(st.sampled_from("ab1e-+.:,#'\"{}[]&*!|>%@` ~?nuloyäλ中𝄞"), max_size=8)
TREES = st.recursive(
    SCALARS | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def problem(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("010", 10),
        ("0x1f", 31),
        ("-7", -7),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("4:30", "4:30"),
        ("0-4", "0-4"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("'1e-3'", "1e-3"),
        ("!!str 5", "5"),
        (".inf", math.inf),
    ],
)
def test_plain_words_follow_yaml_1_2(text: str, value: Any) -> None:
    found = parse(f"a: {text}", "r.yaml").plain()["a"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_value_knows_its_place() -> None:
    root = parse("base: x\nsteps:\n  - ties: {density: 0.2}\n", "r.yaml")
    density = root.value["steps"].value[0].value["ties"].value["density"]
    assert str(density.key) == "r.yaml:3:12"
    assert str(density.mark) == "r.yaml:3:21"


def test_a_key_given_twice_names_both_lines() -> None:
    text = problem("base: x\nseed: 1\nbase: y\n")
    assert text.startswith("r.yaml:3:1: `base` is given twice, first at r.yaml:1:1")


def test_anchors_aliases_and_merge_keys() -> None:
    text = """
        common: &c {weight: 0.5, model: ./x}
        experts:
          a: *c
          b: {<<: *c, model: ./y}
          d: {<<: [{model: ./first}, *c]}
    """
    found = parse(text, "r.yaml").plain()["experts"]
    assert found["a"] == {"weight": 0.5, "model": "./x"}
    assert found["b"] == {"weight": 0.5, "model": "./y"}
    assert found["d"] == {"weight": 0.5, "model": "./first"}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\n---\nb: 2\n", "r.yaml:3", "2 YAML documents in one file"),
        ("a:\n\t- b\n", "r.yaml:2:1", "a tab in the indentation"),
        ("a: [1, 2\nb: 3\n", "r.yaml:2:2", "not valid YAML"),
        ("a: 'x\n", "r.yaml:2:1", "not valid YAML"),
        ("a: *nobody\n", "r.yaml:1:4", "not valid YAML"),
        ("a: !!python/object:os.system x\n", "r.yaml:1:4", "has no meaning in a recipe"),
        ("a: &x [*x]\n", "r.yaml:1:4", "stands inside the value it names"),
        ("a: &x {<<: *x}\n", "r.yaml:1:4", "stands inside the value it names"),
        ("a: {<<: 3}\n", "r.yaml:1:9", "merges mappings only"),
        ("? [1, 2]\n: x\n", "r.yaml:1:3", "a key must be one word"),
        ("", "r.yaml", "the recipe is empty"),
        ("# nothing\n", "r.yaml", "the recipe is empty"),
        ("a: \x07\n", "r.yaml", "not a YAML text"),
        ("[" * 600, "r.yaml", "nested too deep"),
    ],
)
def test_broken_text_is_one_clear_line(text: str, where: str, what: str) -> None:
    message = problem(text)
    assert message.startswith(f"{where}: ")
    assert what in message


def test_a_bomb_of_aliases_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "more than 50,000 values" in problem("\n".join(lines))


@settings(max_examples=40)
@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=4))
def test_json_is_read_as_json(tree: dict[str, Any]) -> None:
    text = json.dumps(tree, ensure_ascii=False)
    assert parse(text, "r.yaml").plain() == json.loads(text)


@settings(max_examples=40)
@given(st.dictionaries(KEYS, TREES, min_size=1, max_size=4))
def test_quoted_text_with_tags_is_read_back(tree: dict[str, Any]) -> None:
    text = yaml.safe_dump(tree, default_style='"', allow_unicode=True)
    assert parse(text, "r.yaml").plain() == tree


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("1e-3", 1e-3),
        (" 2 ", 2),
        ("-3", -3),
        (4, 4),
        (True, None),
        ("x", None),
        ("", None),
        (-(10**400), -math.inf),
    ],
)
def test_number_like_text(value: Any, found: Any) -> None:
    assert number(value) == found
