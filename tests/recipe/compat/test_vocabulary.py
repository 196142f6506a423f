"""`tokenizer_source`, `tokenizer` and `chat_template` of mergekit recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.recipe.load import read_tree
from mergekit_lite.recipe.marks import Problems
from mergekit_lite.tokenizer.chat import NAMED

MERGE = """
merge_method: task_arithmetic
base_model: ./base
models: [{model: ./a}, {model: org/b@v1}]
parameters: {weight: 1}
"""


@pytest.fixture
def translated(write: Callable[..., Path]) -> Callable[[str], dict[str, Any]]:
    """Return what a recipe with these lines says in our language, or raise what is wrong."""

    def read(text: str) -> dict[str, Any]:
        problems = Problems()
        tree = read_tree(write(MERGE + text), (), problems)
        problems.raise_if_any()
        plain: dict[str, Any] = tree.root.plain()
        return {key: plain[key] for key in ("tokenizer", "chat_template") if key in plain}

    return read


Translated = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize(
    ("source", "name"),
    [("base", "base"), ("union", "union"), ("./a", "a"), ("org/b@v1", "b"), ("base/", "base")],
)
def test_where_the_tokenizer_is_from(translated: Translated, source: str, name: str) -> None:
    if source == "base/":
        Path("base").mkdir()
    expected = {"tokenizer": {"source": name}}
    assert translated(f"tokenizer_source: {source}\n") == expected
    assert translated(f"tokenizer: {{source: {source}}}\n") == expected


def test_tokens_have_sources_of_their_own(translated: Translated) -> None:
    assert translated(
        """
tokenizer:
  source: union
  tokens:
    <|im_start|>: {source: ./a}
    <|im_end|>: {source: {kind: model_token, model: org/b@v1, token: </s>}, force: true}
    <pad>: {source: {kind: model_token, model: ./base, token_id: 7}}
    <zero>: {source: {kind: zero}}
    <new>: {}
  pad_to_multiple_of: 64
"""
    ) == {
        "tokenizer": {
            "source": "union",
            "tokens": {
                "<|im_start|>": {"source": "a"},
                "<|im_end|>": {"source": {"model": "b", "token": "</s>"}, "force": True},
                "<pad>": {"source": {"model": "base", "token_id": 7}},
                "<zero>": {"source": "zero"},
                "<new>": {},
            },
            "pad_to_multiple_of": 64,
        }
    }


def test_union_is_what_a_tokenizer_block_means(translated: Translated) -> None:
    found = translated("tokenizer: {pad_to_multiple_of: 8}\n")
    assert found == {"tokenizer": {"source": "union", "pad_to_multiple_of": 8}}


def test_chat_templates(translated: Translated) -> None:
    assert translated("chat_template: auto\n") == {"chat_template": "auto"}
    own = "{{ messages[0].content }}"
    assert translated(f"chat_template: '{own}'\n") == {"chat_template": own}


def test_chat_templates_by_name(translated: Translated) -> None:
    for name in ("alpaca", "chatml", "exaone", "llama3", "mistral"):
        assert translated(f"chat_template: {name}\n") == {"chat_template": name}


def test_a_format_that_is_called_as_a_model_is_written_out(write: Callable[..., Path]) -> None:
    text = MERGE.replace("./a", "./mistral") + "chat_template: mistral\n"
    problems = Problems()
    tree = read_tree(write(text), (), problems)
    problems.raise_if_any()
    plain = tree.root.plain()
    assert "mistral" in plain["experts"]
    assert plain["chat_template"] == NAMED["mistral"].text


@pytest.mark.parametrize(
    ("text", "where", "what", "hint"),
    [
        (
            "tokenizer_source: base\ntokenizer: {source: base}",
            "6:1",
            "both `tokenizer_source` and `tokenizer`",
            "one of them",
        ),
        ("tokenizer_source: ./c", "5:19", "`./c` is not one of the models", "`models`"),
        ("tokenizer: union", "5:12", "`tokenizer` must be a mapping", "`source`"),
        ("tokenizer: {sorce: base}", "5:13", "unknown key `sorce` in `tokenizer`", "`source`"),
        ("tokenizer: {tokens: {x: {src: a}}}", "5:26", "unknown key `src`", "`source`"),
        ("tokenizer: {tokens: {x: {source: ./c}}}", "5:34", "`./c` is not one of", "models"),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token}}}}",
            "5:34",
            "names no `model`",
            "model_token",
        ),
        ("chat_template: chatlm", "5:16", "`chatlm` is no chat template", "`chatml`"),
        ("chat_template: [x]", "5:16", "must be text", "`auto`"),
    ],
)
def test_what_is_wrong(translated: Translated, text: str, where: str, what: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        translated(text + "\n")
    (problem,) = caught.value.problems
    assert problem.where == f"merge.yml:{where}"
    assert what in problem.what
    assert hint in problem.hint
