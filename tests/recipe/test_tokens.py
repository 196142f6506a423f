"""What a recipe may say about vocabularies, heads and chat templates."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mergekit_lite.errors import Problem
from mergekit_lite.recipe import Recipe, load
from mergekit_lite.recipe.schema import TokenSource

Read = Callable[..., Recipe]
Refused = Callable[..., list[Problem]]

SMALL = "base: ./b\nexperts: {math: ./m, code: ./c}\nsteps: [ties]\n"


@pytest.mark.parametrize(
    ("line", "where", "what", "hint"),
    [
        ("tokenizer: {source: unoin}", "4:21", "`tokenizer.source: unoin` is no", "`union`?"),
        ("tokenizer: {sources: base}", "4:13", "unknown key `sources` in `tokenizer`", "`source`?"),
        ("tokenizer: {pad_to_multiple_of: 0}", "4:33", "must be at least 1, not `0`", ""),
        ("tokenizer: {tokens: {<a>: mth}}", "4:27", "`tokenizer.tokens.<a>: mth` is no", "`math`?"),
        (
            "tokenizer: {tokens: {<a>: 3}}",
            "4:27",
            "must be a mapping, not a number",
            "{source: base}",
        ),
        ("tokenizer: {tokens: {<a>: {sorce: math}}}", "4:28", "unknown key `sorce`", "`source`?"),
        (
            "tokenizer: {tokens: {<a>: {source: {token: b}}}}",
            "4:36",
            "names no model",
            "model: NAME",
        ),
        (
            "tokenizer: {tokens: {<a>: {source: {model: math, token: b, token_id: 1}}}}",
            "4:36",
            "has both `token` and `token_id`",
            "one of them",
        ),
        ("vocab: rows", "4:8", "`vocab` must be `base_rows`, `common_rows` or `union`", ""),
        ("chat_template: chat", "4:16", "`chat_template: chat` is no input", "or the text of"),
        ("chat_template: lama3", "4:16", "`chat_template: lama3` is no input", "`llama3`?"),
        ("head: tied", "4:7", "`head` must be `tie` or `untie`", "`tie`?"),
    ],
)
def test_one_wrong_line(refused: Refused, line: str, where: str, what: str, hint: str) -> None:
    (problem,) = refused(SMALL + line)
    assert problem.where == f"recipe.yaml:{where}"
    assert what in problem.what
    assert hint in problem.hint


def test_two_answers_about_the_vocabulary(refused: Refused) -> None:
    (problem,) = refused(SMALL + "vocab: union\ntokenizer: {source: base}")
    assert problem.where == "recipe.yaml:4:8"
    assert "`vocab: union` contradicts `tokenizer: {source: base}`" in problem.what


def test_sources_of_tokens(read: Read) -> None:
    recipe = read(
        SMALL
        + """tokenizer:
  source: union
  pad_to_multiple_of: 64
  tokens:
    "<a>": math
    "<b>": {source: {model: base, token: "<s>"}, force: true}
    "<c>": {source: {kind: model_token, model: code, token_id: 3}}
    "<d>": {source: {kind: zero}}
    "<e>": {force: false}
chat_template: "{{ messages }}"
"""
    )
    tokens = recipe.tokenizer.tokens
    assert tokens["<a>"].source == "math"
    assert tokens["<b>"].force
    assert tokens["<b>"].source == TokenSource(model="base", token="<s>")
    assert tokens["<c>"].source == TokenSource(kind="model_token", model="code", token_id=3)
    assert tokens["<d>"].source == "zero"
    assert tokens["<e>"].source is None
    assert (recipe.tokenizer.source, recipe.tokenizer.pad_to_multiple_of) == ("union", 64)
    assert load(recipe.plain()).tokenizer == recipe.tokenizer
