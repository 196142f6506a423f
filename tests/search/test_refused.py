"""What a search refuses, and what it says then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError, SourceError
from mergekit_lite.quality.forward import Settings
from mergekit_lite.search import study
from mergekit_lite.search.guard import require_no_test_sets
from mergekit_lite.search.run import search
from mergekit_lite.search.study import Strategy
from mergekit_lite.search.task import Task, Wanted, read_task

WANTED = Wanted({}, {}, window_bytes=16)


def read(home: Path, *changes: str, wanted: Wanted = WANTED) -> Task:
    return read_task(home / "recipe.yaml", changes, wanted)


def refused(error: type[MergekitLiteError], home: Path, *changes: str, **wanted: Any) -> Any:
    with pytest.raises(error) as caught:
        read(home, *changes, wanted=replace(WANTED, **wanted))
    return caught.value.problems[0]


def test_a_recipe_with_nothing_to_search(home: Path) -> None:
    fixed = [f"experts.{name}.weight=1" for name in ("one", "two")]
    problem = refused(RecipeError, home, *fixed, "steps=[task_arithmetic]")
    assert problem.what == "the recipe has nothing to search"
    assert "{search: [0, 1]}" in problem.hint


def test_no_objective(home: Path) -> None:
    problem = refused(RecipeError, home, "search=null")
    assert "no objective" in problem.what
    assert "--data" in problem.hint


@pytest.mark.parametrize(
    ("change", "what", "hint"),
    [
        ("experts.one.weight={search: [0, .nan]}", "range of two numbers", ""),
        ("steps=[{ties: {density: {search: [0.5, 2]}}}]", "is 2.0, outside its range", "density"),
        ("steps=[{ties: {elect: {choice: [mass, mas]}}}]", "not `mas`", "`mass`"),
        ("steps=[{sce: {select_topk: {search: [0, x]}}}]", "range of two numbers", ""),
        ("search.objectives=[{data: left, score: accuracy}]", "no `accuracy`", "they have"),
    ],
)
def test_values_that_do_not_fit(home: Path, change: str, what: str, hint: str) -> None:
    problem = refused(RecipeError, home, change)
    assert what in problem.what
    assert hint in problem.hint


def test_whole_numbers_need_a_step(home: Path) -> None:
    change = "steps=[{karcher: {max_iter: {search: [1, 8]}}}]"
    problem = refused(RecipeError, home, change)
    assert "must be a whole number" in problem.what
    assert problem.hint == "give the range a `step` of 1"
    task = read(home, change.replace("8]", "8], step: 1"))
    assert task.recipe_of(task.start).steps[0].params["max_iter"] in (4, 5)


def test_a_recipe_of_another_tool(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "theirs.yaml"
    file.write_text("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n")
    with pytest.raises(RecipeError, match="recipes of our own"):
        read_task(file, (), WANTED)


@pytest.mark.parametrize(
    ("text", "what"),
    [("w4", "there is one token, and nothing to predict"), ("", "nothing"), ("\n\n", "")],
)
def test_texts_with_nothing_to_predict(home: Path, tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "short.txt").write_text(text)
    data = {"short": str(tmp_path / "short.txt")}

    def searching() -> None:
        task = read(home, wanted=replace(WANTED, data=data))
        search(task, Strategy(trials=1), Settings(), threads=1)

    with pytest.raises(DataError) as caught:
        searching()
    assert what in str(caught.value)


def test_data_that_is_not_there(home: Path) -> None:
    problem = refused(SourceError, home, "search.data.left=nowhere.txt")
    assert "nowhere.txt" in problem.what + problem.where


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("gsm8k", "a.jsonl", "the benchmark `gsm8k`"),
        ("math", "GSM-8K/main.jsonl", "the benchmark `gsm8k`"),
        ("quiz", "data/mmlu.jsonl", "the benchmark `mmlu`"),
        ("code", "HumanEval.jsonl", "the benchmark `humaneval`"),
        ("arc", "arc_challenge.jsonl", "the benchmark `arcchallenge`"),
        ("german", "german.test.txt", "called `test`"),
        ("german", "zoo:german", "the zoo's text for tests"),
        ("gsm8k", "gsm8k_train.jsonl", ""),
        ("quiz", "mmlu/validation.jsonl", ""),
        ("german", "zoo:german.validation", ""),
        ("contest", "contest.txt", ""),
    ],
)
def test_test_sets_are_known_by_their_names(name: str, file: str, reason: str) -> None:
    if not reason:
        require_no_test_sets({name: file}, "recipe.yaml:1:1")
        return
    with pytest.raises(RecipeError) as caught:
        require_no_test_sets({name: file}, "recipe.yaml:1:1")
    assert reason in caught.value.problems[0].what
    assert "--allow-test-data" in caught.value.problems[0].hint


def test_a_test_set_is_allowed_when_asked_for(home: Path, tmp_path: Path) -> None:
    (tmp_path / "x_test.txt").write_text("w4 w5 w6\n")
    data = {"more": str(tmp_path / "x_test.txt")}
    assert "called `test`" in refused(RecipeError, home, data=data).what
    task = read(home, wanted=replace(WANTED, data=data, allow_test_data=True))
    assert [one.name for one in task.data] == ["left", "right", "more"]


def test_nothing_is_chosen_by_what_is_held_out(home: Path) -> None:
    problem = refused(RecipeError, home, test={"held": str(home / "left.txt")})
    assert "`held` of `test` has" in problem.what
    assert "of the windows of `left`" in problem.what


def run(home: Path, strategy: Strategy, changes: Sequence[str] = ()) -> None:
    search(read(home, *changes), strategy, Settings(), threads=1)


def test_the_storage_of_another_search(home: Path, tmp_path: Path) -> None:
    storage = str(tmp_path / "search.log")
    run(home, Strategy(trials=1, storage=storage))
    for change in (
        "experts.one.weight={search: [0, 2]}",
        "search.objectives=[{data: left, score: perplexity}]",
        "rules=[{match: {layers: '0'}, take: base}]",
        "search.data.right=left.txt",
    ):
        with pytest.raises(RecipeError, match="is of another recipe") as caught:
            run(home, Strategy(trials=2, storage=storage), [change])
        assert "another --study" in caught.value.problems[0].hint
    run(home, Strategy(trials=1, storage=storage, name="other"), ["experts.one.weight=0.5"])


@pytest.mark.parametrize("storage", ["{}", "{}/no/file.log", "mysterious://x", "sqlite:///{}/n/x"])
def test_a_storage_that_cannot_be_used(home: Path, tmp_path: Path, storage: str) -> None:
    with pytest.raises(SourceError, match="the storage cannot be used"):
        run(home, Strategy(trials=1, storage=storage.format(tmp_path)))


def test_methods_that_do_not_fit(home: Path) -> None:
    with pytest.raises(RecipeError, match="CMA-ES searches numbers, and"):
        run(home, Strategy("cmaes"))
    one = ["search.objectives=[{data: left, score: perplexity}]"]
    with pytest.raises(RecipeError, match="there is one"):
        run(home, Strategy("nsga2"), one)
    single = ["experts.one.weight=1", "steps=[task_arithmetic]"]
    with pytest.raises(RecipeError, match="several numbers together"):
        run(home, Strategy("cmaes"), single)


def test_optuna_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="needs the package optuna") as caught:
        study.require_optuna()
    assert "mergekit-lite[search]" in caught.value.problems[0].hint
