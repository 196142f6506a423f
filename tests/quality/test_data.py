"""Reading texts and questions, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergekit_lite.errors import DataError, RecipeError, SourceError
from mergekit_lite.quality.data import Question, Questions, Texts, named_files, read_data


def write_lines(file: Path, *values: object) -> str:
    file.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(file)


def test_a_text_is_cut_into_windows_of_which_the_first_are_taken(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    (found,) = read_data({"a": "a.txt"}, folder=tmp_path, size=5, most=2)
    assert found == Texts("a", ("one\ntwo\n", "three\n"))


def test_lines_of_text_are_windows_of_their_own(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"})
    assert read_data({"a": file}) == [Texts("a", ("one", "two"))]


def test_questions_are_read_with_answers_by_number_or_by_text(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "quiz.jsonl",
        {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1},
        {"question": "3 + 3 =", "choices": ["6", "4"], "answer": "6"},
    )
    assert read_data({"quiz": file}) == [
        Questions("quiz", (Question("2 + 2 =", ("3", "4"), 1), Question("3 + 3 =", ("6", "4"), 0)))
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "choices are 0 to 1"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "two are the least"),
        ({"question": "q", "choices": ["a", "b"]}, "`answer` is neither"),
        ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "`answer` is neither"),
        ({"question": "q", "choices": ["a", ""], "answer": 0}, "`choices` is no list"),
        ({"question": 3, "choices": ["a", "b"], "answer": 0}, "`question` is no text"),
    ],
)
def test_a_question_that_is_none_is_told_with_its_line(
    tmp_path: Path, line: object, said: str
) -> None:
    good = {"question": "q", "choices": ["a", "b"], "answer": 0}
    file = write_lines(tmp_path / "quiz.jsonl", good, line)
    with pytest.raises(DataError, match=said) as caught:
        read_data({"quiz": file})
    assert caught.value.problems[0].where.endswith("quiz.jsonl:2")


def test_all_files_problems_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("süß".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    write_lines(tmp_path / "chat.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    files = {name: f"{name}.{'jsonl' if name == 'chat' else 'txt'}" for name in ("latin", "empty")}
    with pytest.raises(DataError) as caught:
        read_data({**files, "chat": "chat.jsonl"}, folder=tmp_path)
    said = str(caught.value)
    assert "not UTF-8 at byte 1" in said
    assert "holds no text" in said
    assert "conversations are not scored" in said


def test_a_file_that_is_not_there_is_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        read_data({"a": "gone.txt"}, folder=tmp_path)


def test_the_zoo_has_texts_by_name() -> None:
    (found,) = read_data({"german": "zoo:german"}, most=3)
    assert len(found) == 3
    with pytest.raises(RecipeError, match="did you mean `german`"):
        read_data({"german": "zoo:germn"})


def test_versions_follow_what_is_scored(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    one, same = read_data({"a": "a.txt", "b": "b.txt"}, folder=tmp_path)
    (cut,) = read_data({"a": "a.txt"}, folder=tmp_path, size=3)
    assert one.version == same.version != cut.version


def test_names_of_files_on_a_command_line() -> None:
    named = named_files(["a=x/b.txt", "x/german.test.txt", "zoo:french"])
    assert named == {"a": "x/b.txt", "german": "x/german.test.txt", "french": "zoo:french"}
    with pytest.raises(RecipeError, match="two files of data are called `a`"):
        named_files(["a=1.txt", "a=2.txt"])
