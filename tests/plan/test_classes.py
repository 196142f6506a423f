"""Classifiers whose heads have other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.build import build
from mergekit_lite.plan.types import Job, Plan
from tests.plan.hollow import llama, llama_config, recipe, write

TEXT = "base: base\nexperts: {math: {model: math}}\nsteps: [task_arithmetic]\n"


def classifier(folder: Path, labels: list[str], rows: int = 0) -> None:
    count = rows or len(labels)
    head: Any = {"score.weight": ("BF16", (count, 32)), "score.bias": ("BF16", (count,))}
    names = {str(row): label for row, label in enumerate(labels)}
    ids = {label: row for row, label in enumerate(labels)}
    more = {"id2label": names, "label2id": ids} if labels else {}
    write(folder, llama(tied=True) | head, llama_config(tied=True) | more)


def planned(root: Path, text: str = "") -> Plan:
    return build(recipe(root, TEXT + text))


def refused(root: Path, text: str = "") -> list[str]:
    with pytest.raises(RecipeError) as caught:
        planned(root, text)
    return [str(problem) for problem in caught.value.problems]


def head(made: Plan) -> Job:
    return next(job for job in made.jobs if job.name == "score.weight")


def test_another_number_of_classes_must_be_chosen(root: Path) -> None:
    classifier(root / "base", ["no", "yes"])
    classifier(root / "math", ["bad", "fair", "good"])
    (problem,) = refused(root)
    assert "expert `math` tells other classes apart than the base" in problem
    assert "(3 classes: bad, fair, good; base 2 classes: no, yes)" in problem
    assert "`score.bias`, `score.weight`" in problem
    assert "rules: [{match: '*score*', take: math}]" in problem


def test_the_head_of_an_expert_brings_its_labels(root: Path) -> None:
    classifier(root / "base", ["no", "yes"])
    classifier(root / "math", ["bad", "fair", "good"])
    made = planned(root, "rules: [{match: '*score*', take: math}]")
    job = head(made)
    assert (job.kind, job.shape, job.reads[0].source) == ("copy", (3, 32), "math")
    assert made.config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    assert made.config["label2id"] == {"bad": 0, "fair": 1, "good": 2}


def test_the_head_of_the_base_keeps_the_config(root: Path) -> None:
    classifier(root / "base", ["no", "yes"])
    classifier(root / "math", ["bad", "fair", "good"])
    made = planned(root, "rules: [{match: {role: head}, take: base}]")
    assert head(made).shape == (2, 32)
    assert "id2label" not in made.config


def test_unnamed_classes_get_names_for_their_rows(root: Path) -> None:
    classifier(root / "base", ["no", "yes"])
    classifier(root / "math", [], rows=3)
    made = planned(root, "rules: [{match: '*score*', take: math}]")
    assert made.config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}


def test_the_same_classes_in_another_order_are_refused(root: Path) -> None:
    classifier(root / "base", ["no", "yes"])
    classifier(root / "math", ["yes", "no"])
    (problem,) = refused(root)
    assert "tells other classes apart" in problem
    classifier(root / "math", ["LABEL_0", "LABEL_1"])
    assert head(planned(root)).kind == "merge"


def test_a_head_of_two_models_is_refused(root: Path) -> None:
    classifier(root / "base", ["no", "yes"])
    classifier(root / "math", ["bad", "good"])
    rules = "rules: [{match: score.weight, take: math}, {match: score.bias, take: base}]"
    (problem,) = refused(root, rules)
    assert "the head is put together of models with different classes" in problem
