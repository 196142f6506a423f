"""Searches on a tiny model: what is found, kept, taken up again and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mergekit_lite
from mergekit_lite.errors import DataError, ResourceError
from mergekit_lite.quality.evaluate import evaluate
from mergekit_lite.quality.forward import Settings
from mergekit_lite.quality.scores import TextScore
from mergekit_lite.quality.subjects import MERGE, subject
from mergekit_lite.recipe.schema import Objective
from mergekit_lite.search.run import Found, search
from mergekit_lite.search.study import Strategy
from mergekit_lite.search.task import Wanted, read_task
from mergekit_lite.search.trials import Trial, best_of, front_of
from mergekit_lite.search.written import best_text, write_best

WANTED = Wanted({}, {}, window_bytes=16)


def searched(
    home: Path, strategy: Strategy, changes: Sequence[str] = (), wanted: Wanted = WANTED, **how: Any
) -> Found:
    task = read_task(home / "recipe.yaml", changes, wanted)
    return search(task, strategy, Settings(), threads=1, **how)


LIKE_ONE = (
    "steps=[task_arithmetic]",
    "search.objectives=[{data: left, score: kl, against: one}]",
    "output.dtype=float32",
)


@pytest.mark.parametrize("method", ["tpe", "cmaes"])
def test_the_weights_of_the_model_that_is_asked_for_are_found(home: Path, method: str) -> None:
    """Only one = 1, two = 0 is `one` itself, and the divergence from it is 0 there."""
    found = searched(home, Strategy(method, trials=24, prune=False), LIKE_ONE)
    first, best = found.trials[0], found.best
    assert first.values == {"experts.one.weight": 0.5, "experts.two.weight": 0.25}
    assert best.scores[0] < first.scores[0] / 3
    assert best.values["experts.one.weight"] > 0.7
    assert best.values["experts.two.weight"] < 0.3
    assert best.scores[0] == min(trial.scores[0] for trial in found.trials)


def test_scores_are_those_of_the_model_that_a_run_writes(home: Path, tmp_path: Path) -> None:
    found = searched(home, Strategy(trials=3, prune=False))
    write_best(found, home / "best.yaml")
    mergekit_lite.run(mergekit_lite.load(home / "best.yaml"), tmp_path / "out")
    own = evaluate(subject(MERGE, str(tmp_path / "out")), [], found.task.data, Settings())
    for objective, score in zip(found.task.objectives, found.best.scores, strict=True):
        scored = own.scores[MERGE][objective.data]
        assert isinstance(scored, TextScore)
        assert score == pytest.approx(scored.bits_per_byte, rel=1e-6)


def test_bad_candidates_are_left_on_the_way(home: Path) -> None:
    found = searched(home, Strategy("random", trials=10), LIKE_ONE)
    left = [trial for trial in found.trials if trial.state == "pruned"]
    kept = [trial for trial in found.trials if trial.state == "complete"]
    assert left
    assert len(left) + len(kept) == 10
    assert found.best in kept
    whole = searched(home, Strategy("random", trials=10, prune=False), LIKE_ONE)
    assert [trial.values for trial in whole.trials] == [trial.values for trial in found.trials]
    assert whole.best.scores == pytest.approx(found.best.scores, rel=1e-5)


@pytest.mark.parametrize("storage", ["search.log", "sqlite:///{}/search.db"])
def test_a_search_that_goes_on_finds_what_one_in_one_go_finds(
    home: Path, tmp_path: Path, storage: str
) -> None:
    where = storage.format(tmp_path) if "{" in storage else str(tmp_path / storage)
    whole = searched(home, Strategy(trials=11, seed=3))
    searched(home, Strategy(trials=9, seed=3, storage=where))
    scored: list[Trial] = []
    resumed = searched(home, Strategy(trials=11, seed=3, storage=where), tell_trial=scored.append)
    assert len(scored) == 2
    assert resumed.trials == whole.trials


def test_an_interrupted_candidate_is_chosen_again(home: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(trial: Trial) -> None:
        if trial.number == 1:
            raise Stop

    strategy = Strategy(trials=3, storage=str(tmp_path / "search.log"))
    with pytest.raises(Stop):
        searched(home, strategy, tell_trial=stop)
    resumed = searched(home, strategy)
    whole = searched(home, replace(strategy, storage=None))
    assert [t.values for t in resumed.trials] == [t.values for t in whole.trials]


def test_several_objectives_have_a_front(home: Path) -> None:
    changes = (
        *LIKE_ONE[::2],
        "search.objectives=[{data: left, score: kl, against: one},"
        " {data: left, score: kl, against: two}]",
    )
    found = searched(home, Strategy("nsga2", trials=14), changes)
    assert len(found.front) > 1
    for own in found.front:
        for other in found.trials:
            assert not all(o < w for o, w in zip(other.scores, own.scores, strict=True))
    assert found.best in found.front
    text = best_text(found, home)
    assert text.count("# No worse, number ") == len(found.front) - 1


def test_the_front_is_what_nothing_beats() -> None:
    objectives = [
        Objective(data="a", score="bits_per_byte"),
        Objective(data="b", score="accuracy"),
    ]
    scores = [(1.0, 0.5), (2.0, 0.9), (2.0, 0.4), (1.0, 0.5), (3.0, 0.9)]
    trials = [Trial(n, {}, each, 0.0, "complete") for n, each in enumerate(scores)]
    trials.append(Trial(5, {}, (0.0, 1.0), 0.0, "pruned"))
    assert [trial.number for trial in front_of(trials, objectives)] == [0, 1]


def test_the_best_recipe_says_how_it_was_found(home: Path, tmp_path: Path) -> None:
    wanted = replace(WANTED, test={"later": str(tmp_path / "later.txt")})
    (tmp_path / "later.txt").write_text("w20 w21 w22 w23 w24\n" * 3)
    found = searched(home, Strategy(trials=2, storage=str(tmp_path / "s.log")), (), wanted)
    text = best_text(found, tmp_path / "elsewhere")
    assert "# tpe, seed 0, 2 candidates" in text
    assert f"sha256 {found.task.data[0].version}" in text
    assert "# On held-out data: later " in text
    assert "search:" not in text
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "best.yaml").write_text(text)
    again = mergekit_lite.load(tmp_path / "elsewhere" / "best.yaml")
    assert again.experts["one"].weight == found.best.values["experts.one.weight"]
    assert mergekit_lite.plan(again).content_digest() == found.plan.content_digest()
    assert not found.told_before
    again = searched(home, Strategy(trials=2, storage=str(tmp_path / "s.log")), (), wanted)
    assert again.told_before


def test_the_same_candidate_is_scored_once(home: Path) -> None:
    changes = ("experts.one.weight=0.5", "experts.two.weight=0.5")
    found = searched(home, Strategy("random", trials=6, prune=False), changes)
    assert len({str(trial.values) for trial in found.trials}) == 2
    assert len({trial.scores for trial in found.trials}) == 2


def test_candidates_that_cannot_be_merged_are_told(home: Path) -> None:
    changes = ("steps=[{linear: {normalize: true}}]", "experts.one.weight={choice: [0.5, 0.0]}")
    found = searched(home, Strategy("random", trials=6), (*changes, "experts.two.weight=0.0"))
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed
    assert all("sum to 0" in trial.error for trial in failed)
    assert found.best.values == {"experts.one.weight": 0.5}


def test_nothing_is_found_where_every_candidate_fails() -> None:
    failed = [Trial(0, {}, (), float("inf"), "failed", "NaN in `x`")]
    with pytest.raises(DataError, match="no candidate") as caught:
        best_of(failed)
    assert caught.value.problems[0].hint == "NaN in `x`"


def test_a_model_too_large_for_memory_says_how_to_go_on(home: Path) -> None:
    task = read_task(home / "recipe.yaml", (), WANTED)
    with pytest.raises(ResourceError, match="the search needs about") as caught:
        search(task, Strategy(), Settings(max_memory=1_000_000), threads=1)
    assert "smaller model" in caught.value.problems[0].hint
