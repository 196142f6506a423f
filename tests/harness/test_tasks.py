"""A task of our own, run by lm-eval, beside what `eval` says of the same questions."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from mergekit_lite.cli.main import main
from tests.calibrate.conftest import save_model

pytestmark = [
    pytest.mark.harness,
    pytest.mark.filterwarnings("default"),  # of the harness and its libraries
]
TASK = """\
task: own_quiz
dataset_path: json
dataset_kwargs:
  data_files: {test: questions.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
QUESTIONS = [
    {"question": f"w{n} w{n + 1}", "choices": [f"w{n + 9} w{2 * n}", f"w{n + 5}"], "answer": n % 2}
    for n in range(4, 16)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("harness")
    save_model(home / "one", "llama", seed=0)
    save_model(home / "two", "llama", seed=1)
    (home / "own.yaml").write_text(TASK)
    (home / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    return home


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def called(home: Path, *words: str) -> Result:
    tasks = ("--tasks", str(home / "own.yaml"), "--parent", f"base={home / 'two'}")
    return CliRunner().invoke(main, ["eval", str(home / "one"), *tasks, *words])


def test_a_task_of_our_own_gives_the_accuracy_of_eval(home: Path, tmp_path: Path) -> None:
    xml = tmp_path / "eval.xml"
    data = f"plain={home / 'questions.jsonl'}"
    found = called(home, "--data", data, "--json", "--junit", str(xml))
    assert found.exit_code == 0, found.output
    value = json.loads(found.stdout)
    for model in ("merge", "base"):
        task, plain = (value["scores"][model][name] for name in ("own", "plain"))
        right = [float(c == a) for c, a in zip(plain["chosen"], plain["answers"], strict=True)]
        assert task["metric"] == "acc_norm"
        assert task["values"] == right
        assert task["mean"] == pytest.approx(plain["accuracy"])
    assert value["scores"]["base"]["own"]["recovery"]["value"] > 0
    assert ElementTree.fromstring(xml.read_text()).get("failures") == "0"


def test_a_baseline_of_a_task_is_held_and_one_of_another_version_refused(
    home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "scores.json"
    assert called(home, "--baseline", str(file), "--update-baseline").exit_code == 0
    assert called(home, "--baseline", str(file)).exit_code == 0
    value = json.loads(file.read_text())
    score = value["scores"]["merge"]["own"]
    score["values"] = [1.0] * len(score["values"])
    file.write_text(json.dumps(value))
    fell = called(home, "--baseline", str(file))
    assert fell.exit_code == 3, fell.output
    assert "own: recovery against baseline is" in fell.stderr
    try:
        (home / "own.yaml").write_text(TASK.replace("version: 1.0", "version: 2.0"))
        other = called(home, "--baseline", str(file))
    finally:
        (home / "own.yaml").write_text(TASK)
    assert other.exit_code == 3
    assert "another version of `own`" in other.stderr


def test_a_recipe_bounds_a_task(home: Path) -> None:
    recipe = {
        "base": "one",
        "experts": {"two": "two"},
        "steps": [{"linear": {"weights": {"two": 0.5}}}],
        "output": {"dtype": "float32"},
        "expect": {
            "data": {"own": "task:own.yaml"},
            "bounds": [
                {"data": "own", "score": "mean", "at_least": 0.0},
                {"data": "own", "score": "recovery", "against": "base", "at_least": 9},
            ],
        },
    }
    (home / "recipe.json").write_text(json.dumps(recipe))
    ran = CliRunner().invoke(main, ["run", str(home / "recipe.json"), "--check"])
    assert ran.exit_code == 3, ran.output
    assert "own: mean" in ran.stderr
    assert "own: recovery against base is" in ran.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--tasks", "no_such_task"], 2, "lm-eval has no task `no_such_task`"),
        (["--max-memory", "1kB"], 4, "lm-eval holds all of `merge` in memory"),
    ],
)
def test_what_cannot_be_run_is_said(home: Path, words: list[str], code: int, said: str) -> None:
    found = called(home, *words)
    assert found.exit_code == code, found.output
    assert said in found.stderr
