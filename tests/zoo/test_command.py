"""The verb `zoo`: what it prints and how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergekit_lite.cli.main import main
from mergekit_lite.cli.zoo import score_table
from mergekit_lite.zoo.score import Score


def exit_code(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(["zoo", *arguments])
    return caught.value.code


def test_list_says_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(tmp_path))
    assert exit_code("list", "--json") == 0
    rows = {row["reference"]: row for row in json.loads(capsys.readouterr().out)}
    assert "dequantised from 4 bits" in rows["zoo:smol"]["about"]
    assert rows["zoo:smol"]["here"] is False
    assert rows["zoo:smol-german"] == {
        "reference": "zoo:smol-german",
        "kind": "adapter",
        "about": "database messages in German",
        "here": True,
    }
    assert exit_code("list") == 0
    assert "zoo:smol-dictionary-full" in capsys.readouterr().out


def test_training_an_unknown_expert_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("train", "frensh") == 2
    assert "did you mean `french`" in capsys.readouterr().err


def test_training_without_its_text_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("train", "dictionary", "--data", str(tmp_path)) == 5
    assert "wordnet-base" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_scoring_a_folder_without_a_model_exits_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("score", str(tmp_path)) == 5
    assert "no model there" in capsys.readouterr().err


def test_the_table_marks_the_best_of_each_domain() -> None:
    values = {("base", "de"): 2.0, ("base", "en"): 1.25, ("mix", "de"): 1.5, ("mix", "en"): 1.3}
    found = [Score(model, domain, value, 8, 4096) for (model, domain), value in values.items()]
    assert score_table(found).splitlines() == [
        "model     de      en    mean",
        "base   2.000   1.250*  1.625",
        "mix    1.500*  1.300   1.400",
    ]
