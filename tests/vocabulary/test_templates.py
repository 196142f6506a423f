"""Whose chat template a result has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.tokenizer.chat import NAMED
from tests.checkpoints import write_json
from tests.vocabulary.models import copy_of, merge, model

FILE = "chat_template.jinja"


@pytest.fixture
def four(tmp_path: Path) -> Path:
    model(tmp_path / "base")
    for name, text in (("math", "M {{ messages }}"), ("code", "M {{ messages }}\n"), ("chat", "")):
        copy_of(tmp_path / "base", tmp_path / name)
        (tmp_path / name / FILE).write_text(text)
    (tmp_path / "chat" / FILE).unlink()
    return tmp_path


def test_the_bases_wins_and_the_others_are_told_of(four: Path) -> None:
    plan = merge(four, experts=("math", "code", "chat"))
    (warning,) = [w for w in plan.warnings if "chat template" in w]
    assert "`math`, `code` have another chat template: the result's is the base's" in warning
    assert "`chat_template: math` takes another" in warning
    assert (four / "out" / FILE).read_bytes() == (four / "base" / FILE).read_bytes()


def test_equal_templates_are_not_mentioned(four: Path) -> None:
    plan = merge(four, experts=("chat",))
    assert not any("chat template" in w for w in plan.warnings)


def test_a_base_without_one(four: Path) -> None:
    (four / "base" / FILE).unlink()
    (warning,) = [w for w in merge(four).warnings if "chat template" in w]
    assert "the result's is none, as the base has none" in warning
    assert not (four / "out" / FILE).exists()


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        ("code", "M {{ messages }}\n"),
        ("auto", "M {{ messages }}"),
        ("T {{ messages }}", "T {{ messages }}"),
    ],
)
def test_another_is_chosen(four: Path, wish: str, text: str) -> None:
    write_json(four / "base" / "tokenizer_config.json", {"chat_template": "old", "eos_token": "x"})
    (four / "base" / "additional_chat_templates").mkdir()
    (four / "base" / "additional_chat_templates" / "rag.jinja").write_text("R")
    plan = merge(four, experts=("math", "code"), chat_template=wish)
    assert not any("chat template" in w for w in plan.warnings)
    out = four / "out"
    assert (out / FILE).read_text() == text
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings == {"eos_token": "x", "chat_template": text}
    assert not (out / "additional_chat_templates").exists()


def test_a_known_format_is_chosen(four: Path) -> None:
    plan = merge(four, chat_template="llama3")
    assert (four / "out" / FILE).read_text() == NAMED["llama3"].text
    (warning,) = [w for w in plan.warnings if "chat template" in w]
    assert "writes `<|start_header_id|>` and `<|end_header_id|>` and `<|eot_id|>`, which" in warning


def test_tokens_that_the_recipe_adds_are_not_warned_of(four: Path) -> None:
    tokens: dict[str, Any] = {token: {} for token in NAMED["chatml"].tokens}
    plan = merge(four, chat_template="chatml", tokenizer={"tokens": tokens})
    assert (four / "out" / FILE).read_text() == NAMED["chatml"].text
    assert not any("spells out" in warning for warning in plan.warnings)


def test_an_expert_of_that_name_comes_first(four: Path) -> None:
    (four / "math").rename(four / "mistral")
    merge(four, experts=("mistral",), chat_template="mistral")
    assert (four / "out" / FILE).read_text() == "M {{ messages }}"


def test_that_of_nobody_is_refused(four: Path) -> None:
    with pytest.raises(RecipeError, match="`chat` has no chat template"):
        merge(four, experts=("chat",), chat_template="chat")


def test_it_comes_with_the_tokenizer(four: Path) -> None:
    merge(four, tokenizer={"source": "math"})
    assert (four / "out" / FILE).read_text() == "M {{ messages }}"
    merge(four, "more", tokenizer={"source": "math"}, chat_template="base")
    assert (four / "more" / FILE).read_bytes() == (four / "base" / FILE).read_bytes()
