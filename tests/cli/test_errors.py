"""What an exception becomes: a message and an exit code."""

from __future__ import annotations

import errno
import json

import click
import pytest

from mergekit_lite.cli._errors import explain, guard, json_lines, wants_json
from mergekit_lite.errors import (
    DataError,
    Interrupted,
    Problem,
    RecipeError,
    ResourceError,
    SourceError,
)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RecipeError("unknown key `bse`", "r.yaml:1:1", "did you mean `base`?"), 2, "r.yaml:1:1"),
        (DataError("NaN"), 3, "NaN"),
        (ResourceError("no disk"), 4, "no disk"),
        (SourceError("gone"), 5, "gone"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 4, "free some space"),
        (OSError(errno.EROFS, "Read-only file system", "x"), 4, "read-only"),
        (OSError(errno.EIO, "Input/output error", "x"), 1, "x: Input/output error"),
        (MemoryError(), 4, "--max-memory"),
        (ValueError("boom"), 1, "ValueError: boom"),
        (click.UsageError("no such thing"), 2, "no such thing"),
    ],
)
def test_code_and_words(error: BaseException, code: int, words: str) -> None:
    text, found = explain(error)
    assert found == code
    assert words in text
    assert "Traceback" not in text


def test_all_problems_are_numbered() -> None:
    error = RecipeError([Problem("first", "a:1"), Problem("second", "b:2", "do this")])
    text, _ = explain(error)
    assert text.splitlines() == [
        "error: 2 problems",
        "  1. a:1: first",
        "  2. b:2: second",
        "       do this",
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort(), Interrupted("stopped")])
def test_interruption_says_how_to_resume(error: BaseException) -> None:
    text, code = explain(error)
    assert code == 130
    assert text.count("run the same command again to resume") == 1


def test_interruption_with_a_hint_says_it_once() -> None:
    error = Interrupted("stopped with 1 of 2", hint="run the same command again to resume")
    text, _ = explain(error)
    assert text.count("again") == 1


def test_traceback_only_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("boom")

    assert guard(fail) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("MERGEKIT_LITE_DEBUG", "1")
    assert guard(fail) == 1
    assert "Traceback" in capsys.readouterr().err


def test_each_problem_is_a_line_of_json() -> None:
    error = RecipeError([Problem("first", "a:1"), Problem("second", "b:2", "do\nthis")])
    lines = [json.loads(line) for line in json_lines(error).splitlines()]
    assert [(e["what"], e["where"], e["hint"], e["exit_code"]) for e in lines] == [
        ("first", "a:1", "", 2),
        ("second", "b:2", "do\nthis", 2),
    ]
    assert {e["event"] for e in lines} == {"error"}
    (line,) = (json.loads(line) for line in json_lines(KeyboardInterrupt()).splitlines())
    assert (line["exit_code"], line["hint"]) == (130, "run the same command again to resume")


def test_guard_prints_json_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    assert guard(fail, as_json=True) == 4
    error = json.loads(capsys.readouterr().err)
    assert (error["what"], error["where"]) == ("No space left on device", "x")
    assert "free some space" in error["hint"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["run", "--log-format", "json"], True),
        (["run", "--log-format=json", "r.yaml"], True),
        (["run", "--log-format", "plain", "json"], False),
        (["run", "--log-format"], False),
        ([], False),
    ],
)
def test_who_wants_json(words: list[str], wanted: bool) -> None:
    assert wants_json(words) is wanted
