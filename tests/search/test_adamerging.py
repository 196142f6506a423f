"""Weights by layer that are learnt from the entropy of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mergekit_lite
from mergekit_lite.engine.options import Options
from mergekit_lite.errors import DataError, RecipeError, ResourceError
from mergekit_lite.plan.build import build, prepare
from mergekit_lite.quality.data import Texts
from mergekit_lite.quality.forward import Settings
from mergekit_lite.search.adamerging import START, Learning, adamerging
from mergekit_lite.search.entropy import Entropy, vectors_of
from mergekit_lite.search.held import held
from mergekit_lite.search.run import Found
from mergekit_lite.search.task import Wanted, read_task
from mergekit_lite.search.written import best_text

WANTED = Wanted({}, {}, window_bytes=16, parameters=False)
PLAIN = ("experts.one={model: ./one}", "experts.two={model: ./two, weight: 0.5}")


def learnt(home: Path, *changes: str, learning: Learning, **settings: Any) -> Found:
    changes = (*PLAIN, "steps=[task_arithmetic]", *changes)
    task = read_task(home / "recipe.yaml", changes, WANTED)
    return adamerging(task, learning, Settings(**settings), threads=1)


def test_slopes_are_those_of_the_entropy(home: Path) -> None:
    def recipe(one: float, two: float) -> dict[str, Any]:
        pairs = {"one": one, "two": two}
        experts = {n: {"model": str(home / n), "weight": w} for n, w in pairs.items()}
        return {
            "base": str(home / "base"),
            "experts": experts,
            "steps": ["task_arithmetic"],
            "output": {"dtype": "float32"},
        }

    plan, models = prepare(mergekit_lite.load(recipe(0, 0)))
    model = held(plan, models, Settings(), Options(threads=1))
    try:
        ones = [build(mergekit_lite.load(recipe(*w)), models) for w in ((1, 0), (0, 1))]
        texts = [Texts("words", ("w4 w6 w8 w10 w4 w6", "w5 w7 w9"))]
        entropy = Entropy(model, vectors_of(model, [plan, *ones]), texts)
        weights = np.full((4, 2), 0.4)
        slope = entropy.slope(weights)
        for place in [(0, 0), (2, 1), (3, 0)]:
            values = []
            for step in (0.02, -0.02):
                moved = weights.copy()
                moved[place] += step
                entropy.slope(moved)
                values.append(entropy.value)
            expected = (values[0] - values[1]) / 0.04
            assert slope[place] == pytest.approx(expected, rel=0.03, abs=2e-4)
    finally:
        model.close()


def test_weights_are_learnt_and_written_by_layer(home: Path, tmp_path: Path) -> None:
    found = learnt(home, learning=Learning(steps=4, rate=0.05, every=2))
    first, last = found.trials[0], found.trials[-1]
    assert first.values == {
        "experts.one.weight": [START] * 4,
        "experts.two.weight": [0.5] * 4,
    }
    assert len(found.trials) == 3
    moved = [abs(w - START) for w in last.values["experts.one.weight"]]
    assert all(0 < each <= 0.21 for each in moved)
    assert found.best.loss == min(trial.loss for trial in found.trials)
    again = learnt(home, learning=Learning(steps=4, rate=0.05, every=2))
    assert again.trials == found.trials
    (home / "learnt.yaml").write_text(best_text(found, home))
    plan = mergekit_lite.plan(home / "learnt.yaml")
    assert plan.content_digest() == found.plan.content_digest()
    best = found.best.values["experts.one.weight"]
    for job in plan.jobs:
        weight = job.steps[0].params["weights"][0]
        assert weight == pytest.approx(best[3 if job.layer is None else job.layer], abs=1e-4)


def test_only_sums_of_task_vectors_are_learnt(home: Path) -> None:
    for steps in ("[ties]", "[{task_arithmetic: {normalize: true}}]", "[task_arithmetic, lines]"):
        with pytest.raises(RecipeError, match="where task vectors are added"):
            learnt(home, f"steps={steps}", learning=Learning(steps=1))


def test_questions_alone_teach_nothing(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text('{"question": "w4 w5", "choices": ["w6", "w7"], "answer": 0}\n')
    with pytest.raises(DataError, match="there are no texts"):
        learnt(home, f"search={{data: {{quiz: {file}}}}}", learning=Learning(steps=1))


def test_memory_is_said_and_refused(home: Path) -> None:
    need = learnt(home, learning=Learning(steps=1)).memory
    with pytest.raises(ResourceError, match="learning takes about") as caught:
        learnt(home, learning=Learning(steps=1), max_memory=need - 1)
    assert "fewer experts" in caught.value.problems[0].hint
