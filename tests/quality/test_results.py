"""Results on disk, as baselines of later models, and as JUnit XML."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mergekit_lite.errors import DataError, Problem, SourceError
from mergekit_lite.quality.bounds import against_baseline
from mergekit_lite.quality.results import read_baseline, require_version, write_results
from mergekit_lite.quality.scores import ChoiceScore, Evaluation, Likeness, TextScore
from mergekit_lite.quality.verdicts import Verdict, junit, require_all, verdicts_of

TEXT = TextScore((4.0, 8.0), (2, 4), (3, 5))
QUIZ = ChoiceScore((0, 1), (0, 0))


def evaluation(text: TextScore = TEXT, quiz: ChoiceScore = QUIZ) -> Evaluation:
    return Evaluation(
        "./merged",
        {"german": "v1", "quiz": "v2"},
        {"merge": {"german": text, "quiz": quiz}, "base": {"german": TEXT, "quiz": QUIZ}},
        {"base": {"german": Likeness((0.5, 0.5), (1, 2), (2, 4))}},
    )


def test_results_come_back_as_the_baseline_that_they_are(tmp_path: Path) -> None:
    write_results(evaluation(), tmp_path / "scores.json")
    found = read_baseline(tmp_path / "scores.json")
    assert found.versions == {"german": "v1", "quiz": "v2"}
    assert found.scores == {"german": TEXT, "quiz": QUIZ}
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]
    value = json.loads((tmp_path / "scores.json").read_text())
    base = value["scores"]["base"]
    assert base["german"]["kl"] == pytest.approx(1 / 6)
    assert base["german"]["agreement"] == pytest.approx(0.5)
    assert base["quiz"]["recovery"]["value"] == 1.0


def test_a_baseline_of_another_version_of_the_data_is_refused(tmp_path: Path) -> None:
    write_results(evaluation(), file := tmp_path / "scores.json")
    baseline = read_baseline(file)
    require_version(baseline, {"german": "v1"}, file)
    with pytest.raises(DataError) as caught:
        require_version(baseline, {"german": "v3", "french": "v1"}, file)
    said = str(caught.value)
    assert "scored on another version of `german`" in said
    assert "no scores of `french`" in said
    assert "--update-baseline" in said


def test_what_is_no_baseline_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read the baseline"):
        read_baseline(tmp_path / "gone.json")
    (tmp_path / "other.json").write_text('{"scores": {"merge": {"german": {}}}}')
    with pytest.raises(DataError, match="holds no results"):
        read_baseline(tmp_path / "other.json")


def test_worse_than_the_baseline_falls_and_as_good_holds(tmp_path: Path) -> None:
    write_results(evaluation(), file := tmp_path / "scores.json")
    earlier = read_baseline(file)
    assert all(verdict.holds for verdict in against_baseline(evaluation(), earlier))
    worse = evaluation(TextScore((4.4, 8.8), (2, 4), (3, 5)), ChoiceScore((1, 1), (0, 0)))
    german, quiz = against_baseline(worse, earlier)
    assert (german.holds, quiz.holds) == (False, True)
    assert german.found == "0.9091 [0.9091, 0.9091]"
    with pytest.raises(DataError, match="must be at least 1"):
        require_all([german, quiz])


def test_junit_has_a_case_for_each_verdict() -> None:
    fault = Problem("not finite", "german", "look at it")
    found = Evaluation("m", {}, {"merge": {}}, {}, (fault,))
    verdicts = [*verdicts_of(found), Verdict("a & b", "1", "at least 2", False)]
    root = ElementTree.fromstring(junit(verdicts, "eval m"))
    assert root.attrib == {"tests": "3", "failures": "2", "errors": "0"}
    cases = root.findall(".//testcase")
    assert [case.get("name") for case in cases] == ["loads", "fault: german", "a & b"]
    assert [case.find("failure") is not None for case in cases] == [False, True, True]
    assert cases[1].find("failure").text == "look at it"  # type: ignore[union-attr]
