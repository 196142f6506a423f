"""Parts of the page that are of results: scores, recovery, choices of routers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.calibrate.probe import Loss, Probe
from mergekit_lite.calibrate.routing import LayerRouting
from mergekit_lite.errors import DataError, Problem, SourceError
from mergekit_lite.quality.results import record
from mergekit_lite.quality.scores import (
    ChoiceScore,
    Evaluation,
    PairScore,
    Score,
    TaskScore,
    TextScore,
)
from mergekit_lite.report.page import page
from mergekit_lite.report.scored import read_section, routing_section, scores_section
from tests.report.test_page import text_of, vectors


def results(name: str = "german", *faults: Problem) -> dict[str, Any]:
    merge = {name: TextScore((4.0, 8.0), (2, 4), (3, 5)), "quiz": ChoiceScore((0, 1), (0, 0))}
    expert = {name: TextScore((2.0, 4.0), (2, 4), (3, 5)), "quiz": ChoiceScore((0, 0), (0, 0))}
    found = Evaluation(
        "./merged", dict.fromkeys(merge, "v1"), {"merge": merge, name: expert}, {}, faults
    )
    return json.loads(json.dumps(record(found)))


def probed() -> dict[str, Any]:
    """Two layers: the first sends all where it belongs, the second tosses a coin."""
    layers = tuple(
        LayerRouting(i, f"router.{i}", chosen, chosen, 0.5, (0.5, 0.5), 0.0, 1.0)
        for i, chosen in enumerate((((1.0, 0.0), (0.0, 1.0)), ((0.5, 0.5), (0.5, 0.5))))
    )
    belongs = {"math": (0,), "code": (1,)}
    losses = {"routed": dict.fromkeys(belongs, Loss(1.0, 2.0))}
    found = Probe(("math", "code"), ("math", "code"), belongs, layers, losses)
    shares = {"tokens_right": found.right_in_all(), "texts_right": found.right_in_all(texts=True)}
    return json.loads(json.dumps(asdict(found) | shares))


def test_scores_and_recovery_of_every_parent_are_told() -> None:
    text = text_of(page(vectors(), [scores_section(results())]))
    # 12 nats over 8 bytes are 2.164 bits; the expert needs half, and is right where we are not.
    for wanted in ("german (bits per byte)", "2.164", "1.082", "quiz (accuracy)", "0.500"):
        assert wanted in text
    assert "0.500 [0.500, 0.500]" in text
    assert "Faults" not in text


def test_pairs_and_tasks_have_their_own_numbers() -> None:
    scores: dict[str, dict[str, Score]] = {
        "merge": {"sts": PairScore((0.1, 0.2, 0.3), (1, 3, 2)), "arc": TaskScore("acc", (1, 0))},
        "base": {"sts": PairScore((0.1, 0.2, 0.3), (1, 2, 3)), "arc": TaskScore("acc", (1, 1))},
    }
    found = Evaluation("./merged", dict.fromkeys(scores["merge"], "v1"), scores)
    text = text_of(page(vectors(), [scores_section(json.loads(json.dumps(record(found))))]))
    for wanted in ("sts (correlation)", "arc (mean)", "0.500", "1.000"):
        assert wanted in text


def test_faults_are_told() -> None:
    section = scores_section(results("german", Problem("3 entries are NaN", "lm_head.weight")))
    assert "3 entries are NaN" in text_of(section)


def test_names_of_data_cannot_add_tags() -> None:
    section = scores_section(results("<script>alert(1)</script>"))
    assert "<script" not in section
    text_of(section)


def test_the_choices_of_routers_are_a_matrix_and_lines_over_depth() -> None:
    text = text_of(routing_section(probed()))
    assert "75.0% of the tokens" in text
    means = text.partition("Over depth")[0].partition("of the texts")[2]
    assert (means.count("75%"), means.count("25%")) == (2, 2)
    assert "1: code, routed layer 1: 50%" in text


def test_a_file_of_other_things_is_refused_with_how_to_make_one(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    with pytest.raises(SourceError, match="eval --json"):
        read_section(file, scores_section, "eval")
    for wrong in ("{", "[]", '{"scores": {}}', json.dumps(probed())):
        file.write_text(wrong)
        with pytest.raises(DataError, match="no results of `eval`"):
            read_section(file, scores_section, "eval")
    file.write_text(json.dumps(results()))
    with pytest.raises(DataError, match="no results of `moe probe`"):
        read_section(file, routing_section, "moe probe")
