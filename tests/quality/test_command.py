"""`eval` as it is called."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from mergekit_lite.cli.main import main
from tests.calibrate.conftest import save_model
from tests.checkpoints import read_weights


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("eval")
    save_model(home / "one", "llama", seed=0)
    save_model(home / "two", "llama", seed=1)
    words = "w4 w6 w8 w10\nw5 w7 w9 w11\nw12 w14 w16\n"
    (home / "words.txt").write_text(words)
    quiz = {"question": "w4 w5", "choices": ["w6 w7", "w8"], "answer": 0}
    (home / "quiz.jsonl").write_text(json.dumps(quiz) + "\n")
    return home


def called(home: Path, *words: str) -> Result:
    data = ("--data", str(home / "words.txt"), "--window-bytes", "9")
    return CliRunner().invoke(main, ["eval", str(home / "one"), *data, *words])


def test_the_table_has_scores_of_all_models(home: Path) -> None:
    found = called(
        home, "--data", f"quiz={home / 'quiz.jsonl'}", "--parent", f"base={home / 'two'}"
    )
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["words", "merge"],
        ["words", "base"],
        ["quiz", "merge"],
        ["quiz", "base"],
    ]
    assert "bits/byte, perplexity" in lines[1]
    assert "right of 1" in lines[3]


def test_a_baseline_is_written_compared_with_and_fallen_below(home: Path, tmp_path: Path) -> None:
    file, xml = tmp_path / "scores.json", tmp_path / "eval.xml"
    assert called(home, "--baseline", str(file)).exit_code == 5
    assert called(home, "--baseline", str(file), "--update-baseline").exit_code == 0
    assert called(home, "--baseline", str(file)).exit_code == 0

    value = json.loads(file.read_text())
    score = value["scores"]["merge"]["words"]
    score["nats"] = [0.5 * nats for nats in score["nats"]]
    file.write_text(json.dumps(value))
    found = called(home, "--baseline", str(file), "--junit", str(xml))
    assert found.exit_code == 3
    assert "words: recovery against baseline is 0.5000" in found.stderr
    assert ElementTree.fromstring(xml.read_text()).get("failures") == "1"

    other = called(home, "--baseline", str(file), "--windows", "2")
    assert other.exit_code == 3
    assert "another version of `words`" in other.stderr


def test_json_has_units_and_summaries(home: Path) -> None:
    found = called(home, "--json")
    value = json.loads(found.stdout)
    score = value["scores"]["merge"]["words"]
    assert len(score["nats"]) == len(score["bytes"]) == 3
    assert score["bits_per_byte"] > 0


def test_a_model_with_nan_is_exit_code_3(home: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "nan", "llama")
    weights = read_weights(folder)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = CliRunner().invoke(
        main, ["eval", str(folder), "--data", f"words={home / 'words.txt'}", "--json"]
    )
    assert found.exit_code == 3
    assert "not finite" in found.stderr
    assert json.loads(found.stdout)["scores"]["merge"]["words"]["nats"][0] is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--parent", "two"], 2, "is not NAME=MODEL"),
        (["--parent", "a=x", "--parent", "a=y"], 2, "two parents are called `a`"),
        (["--update-baseline"], 2, "name the file to write"),
        (["--parent", "base=./nowhere"], 5, "nowhere"),
        (["--max-memory", "1kB"], 4, "bytes of memory"),
    ],
)
def test_what_is_wrong_is_said(home: Path, words: list[str], code: int, said: str) -> None:
    found = called(home, *words)
    assert found.exit_code == code, found.output
    assert said in found.stderr
