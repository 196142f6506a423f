"""What is read of tasks before lm-eval runs them."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import DataError, RecipeError, SourceError
from mergekit_lite.quality.measures import measured
from mergekit_lite.quality.scores import TaskScore, score_of, score_record
from mergekit_lite.quality.tasks import named_tasks, read_tasks

TASK = "task: own\ndataset_kwargs:\n  data_files: {test: a.jsonl}\nprocess: !function u.f\n"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "1.0" if name == "lm_eval" else real(name)
    )


def version(folder: Path) -> str:
    (task,) = read_tasks({"own": "task:own.yaml", "text": "a.txt"}, folder=folder)
    assert (task.name, task.task, task.folder) == ("own", "own", folder.resolve())
    return task.version


def test_the_version_of_a_task_is_that_of_its_file_its_data_and_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, data = tmp_path / "own.yaml", tmp_path / "a.jsonl"
    file.write_text(TASK)
    data.write_text("{}")
    first = version(tmp_path)
    assert version(tmp_path) == first
    data.write_text("{ }")
    second = version(tmp_path)
    file.write_text(TASK + "metadata: {version: 2}\n")
    third = version(tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.0")
    assert len({first, second, third, version(tmp_path)}) == 4


def test_what_is_wrong_with_tasks_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(TASK)
    (tmp_path / "none.yaml").write_text("dataset_path: json\n")
    (tmp_path / "bad.yaml").write_text("task: [\n")
    files = {name: f"task:{name}.yaml" for name in ("own", "none", "bad")}
    with pytest.raises(DataError) as caught:
        read_tasks(files, folder=tmp_path)
    said = [problem.what for problem in caught.value.problems]
    assert said[:2] == ["a file of its data is not there", "it describes no task"]
    assert said[2].startswith("not YAML")
    with pytest.raises(SourceError, match="cannot read"):
        read_tasks({"a": "task:gone.yaml"}, folder=tmp_path)


def test_without_lm_eval_it_is_said_how_to_install_it(monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert read_tasks({"a": "a.txt"}) == []
    with pytest.raises(SourceError, match=r"lm-eval[\s\S]*mergekit-lite\[eval\]"):
        read_tasks({"a": "task:arc_easy"})


def test_names_of_tasks_on_a_command_line() -> None:
    named = named_tasks("arc_easy, x/own.yaml")
    assert named == {"arc_easy": "task:arc_easy", "own": "task:x/own.yaml"}
    with pytest.raises(RecipeError, match="two tasks are called `own`"):
        named_tasks("own,own.yaml")


def test_scores_of_tasks_compare_question_by_question() -> None:
    one, two = TaskScore("acc", (1.0, 0.0, 1.0, 0.0)), TaskScore("acc", (1.0, 1.0, 1.0, 1.0))
    assert measured("mean", one).value == 0.5
    assert measured("recovery", one, two).value == 0.5
    assert measured("flips", one, two).value == 0.5
    assert score_of(score_record(one)) == one
