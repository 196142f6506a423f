"""Texts from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergekit_lite.calibrate.texts import data_files, prompts, read_texts
from mergekit_lite.errors import DataError, SourceError


def test_a_text_file_is_one_running_text_of_the_domain_it_is_named_after(tmp_path: Path) -> None:
    (tmp_path / "law.validation.txt").write_text("one\ntwo\n")

    (text,) = read_texts([tmp_path / "law.validation.txt"])

    assert (text.text, text.domain, text.is_running) == ("one\ntwo\n", "law", True)


def test_lines_of_json_have_text_or_messages_and_may_have_a_domain(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hello"}]
    lines = [{"text": "a\u2028b", "domain": "math"}, {"messages": turns}, {"text": " "}]
    file = tmp_path / "code.jsonl"
    file.write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in lines), encoding="utf-8")

    first, second = read_texts([("named", file)])

    assert (first.text, first.domain, first.where) == ("a\u2028b", "math", f"{file}:1")
    assert (second.messages, second.domain) == ((turns[0],), "named")


def test_all_that_is_wrong_with_all_files_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin1"))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "odd.jsonl").write_text('{"text": 1}\n[]\nnone\n{"text": "x", "domain": 3}\n')
    (tmp_path / "table.csv").write_text("a,b")

    with pytest.raises(DataError) as caught:
        read_texts(
            [tmp_path / name for name in ("latin.txt", "empty.txt", "odd.jsonl", "table.csv")]
        )

    told = [f"{Path(problem.where).name}: {problem.what}" for problem in caught.value.problems]
    assert told[0] == "latin.txt: not UTF-8 at byte 2"
    assert told[1] == "empty.txt: the file holds no text"
    assert told[2:5] == [
        "odd.jsonl:1: neither `text` nor `messages`",
        "odd.jsonl:2: not a JSON object",
        "odd.jsonl:3: not JSON: Expecting value: line 1 column 1 (char 0)",
    ]
    assert told[5:] == ["odd.jsonl:4: `domain` is no text", "table.csv: `.csv` files are not read"]
    assert "iconv" in caught.value.problems[0].hint


def test_a_file_that_is_not_there_is_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read .*none\.txt"):
        read_texts([tmp_path / "none.txt"])


def test_a_domain_may_stand_before_a_file_and_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.txt"
    odd.write_text("text")

    assert data_files([str(odd), "law=x.txt", "y.txt"]) == [
        odd,
        ("law", Path("x.txt")),
        Path("y.txt"),
    ]


def test_prompts_of_a_recipe_are_texts_of_one_domain() -> None:
    assert [(t.text, t.domain) for t in prompts("math", ["1 + 1", "2"])] == [
        ("1 + 1", "math"),
        ("2", "math"),
    ]
