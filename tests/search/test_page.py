"""The page of a search: all candidates are on it, the chosen one stands out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from mergekit_lite.report.scatter import Point, scatter
from mergekit_lite.search.page import page
from mergekit_lite.search.run import Found
from mergekit_lite.search.study import Strategy
from mergekit_lite.search.task import Wanted, read_task
from mergekit_lite.search.trials import Trial, best_of, front_of

SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)


def circles(svg: str) -> list[dict[str, str]]:
    return [node.attrib for node in ElementTree.fromstring(svg) if node.tag == "circle"]


def found_in(home: Path) -> Found:
    task = read_task(home / "recipe.yaml", (), Wanted({}, {}, window_bytes=16))
    scores = [(1.0, 2.0), (2.0, 1.0), (1.2, 1.2), (2.0, 2.0)]
    trials = [Trial(n, {"w": n / 4}, s, sum(s) / 2, "complete") for n, s in enumerate(scores)]
    trials.append(Trial(4, {"w": 9.0}, (3.0, 3.0), 3.0, "pruned"))
    best, front = best_of(trials), tuple(front_of(trials, task.objectives))
    plan = cast(Any, None)
    return Found(task, Strategy(), tuple(trials), best, task.tree.root, plan, front)


def test_all_candidates_are_drawn_and_the_front_is_joined(home: Path) -> None:
    text = page(found_in(home))
    course, trade = SVG.findall(text)
    assert [c["style"][-3:] for c in circles(course)] == ["-1)", "-1)", "-2)", "-0)"]
    (line,) = [n for n in ElementTree.fromstring(trade) if n.tag == "polyline"]
    assert len(line.attrib["points"].split()) == 3
    assert text.count("<tr>") == 3 + 1 + 5 + 1
    assert "left on the way" in text
    assert "http" not in text


def test_points_are_where_they_belong() -> None:
    points = [Point(1.0, 10.0, "<a>"), Point(3.0, 30.0, "b"), Point(2.0, 20.0, "c")]
    drawn = scatter(points, label="l", across="x", up="y")
    xs, ys = zip(*((float(c["cx"]), float(c["cy"])) for c in circles(drawn)), strict=True)
    assert xs[2] == pytest.approx((xs[0] + xs[1]) / 2, abs=0.1)
    assert ys[2] == pytest.approx((ys[0] + ys[1]) / 2, abs=0.1)
    assert xs[0] < xs[1]
    assert ys[0] > ys[1]
    assert "&lt;a&gt;" in drawn


def test_equal_points_are_drawn() -> None:
    drawn = scatter([Point(1.0, 0.0, "a"), Point(1.0, 0.0, "b")], label="l", across="x", up="y")
    assert len(circles(drawn)) == 2
