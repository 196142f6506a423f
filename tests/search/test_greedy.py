"""Greedy soups: experts that make the score worse are left out."""

from __future__ import annotations

from pathlib import Path

import pytest

import mergekit_lite
from mergekit_lite.errors import RecipeError
from mergekit_lite.quality.forward import Settings
from mergekit_lite.search.greedy import greedy
from mergekit_lite.search.run import Found
from mergekit_lite.search.task import Wanted, read_task
from mergekit_lite.search.written import write_best

WANTED = Wanted({}, {}, window_bytes=16, parameters=False)
LIKE_ONE = (
    "steps=[linear]",
    "search.objectives=[{data: left, score: kl, against: one}]",
    "output.dtype=float32",
    "experts.one.weight=1",
    "experts.two.weight=1",
)


def soup(home: Path, *changes: str) -> Found:
    return greedy(read_task(home / "recipe.yaml", changes, WANTED), Settings(), threads=1)


def test_an_expert_that_makes_it_worse_is_left_out(home: Path) -> None:
    found = soup(home, *LIKE_ONE)
    sets = [trial.values["experts"] for trial in found.trials]
    assert sets == ["one", "two", "one + two"]
    assert found.best.values == {"experts": "one"}
    assert found.best.scores[0] == pytest.approx(0.0, abs=1e-6)
    write_best(found, home / "soup.yaml")
    assert list(mergekit_lite.load(home / "soup.yaml").experts) == ["one"]
    assert mergekit_lite.plan(home / "soup.yaml").content_digest() == found.plan.content_digest()


def test_experts_whose_score_holds_are_kept(home: Path) -> None:
    found = soup(home, *LIKE_ONE, "experts.two.model=./one")
    assert found.best.values == {"experts": "one + two"}


def test_there_must_be_something_to_choose(home: Path) -> None:
    with pytest.raises(RecipeError, match="there is one expert"):
        soup(home, *LIKE_ONE, "experts={one: ./one}")
