"""Axes, shades and the text of charts."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.report.charts import HEIGHT, WIDTH, lines, matrix, scale, shade, strips, table

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-6)


@given(FINITE, FINITE)
def test_an_axis_holds_its_values_between_few_round_ticks(a: float, b: float) -> None:
    low, high = sorted((a, b))
    start, end, step = scale(low, high)
    slack = 1e-6 * max(abs(low), abs(high), step)
    assert start <= low + slack
    assert end >= high - slack
    assert 1 <= round((end - start) / step) <= 7


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 0.74, (0, 0.8, 0.2)), (0, 100, (0, 100, 25)), (-0.2, 0.2, (-0.2, 0.2, 0.1))],
)
def test_round_ends(low: float, high: float, expected: tuple[float, float, float]) -> None:
    assert scale(low, high) == pytest.approx(expected)


def test_a_line_breaks_at_a_gap_and_stays_inside() -> None:
    drawn = lines({"a": [0.0, 1.0, None, 2.0, 3.0]}, label="l", axis="layer", text=str)
    svg = ElementTree.fromstring(drawn[: drawn.index("<ul")])
    runs = [node for node in svg if node.tag == "polyline"]
    assert [len(run.attrib["points"].split()) for run in runs] == [2, 2]
    points = [tuple(map(float, p.split(","))) for r in runs for p in r.attrib["points"].split()]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    titles = [node.findtext("title") for node in svg if node.tag == "circle"]
    assert titles == ["a, layer 0: 0.0", "a, layer 1: 1.0", "a, layer 3: 2.0", "a, layer 4: 3.0"]


def test_the_ninth_line_is_dashed() -> None:
    drawn = lines({f"e{i}": [1.0, 2.0] for i in range(9)}, label="", axis="", text=str)
    assert drawn.count('class="line dashed"') == 1
    assert "e8 (dashed)" in drawn


def test_a_single_layer_and_nothing_at_all_can_be_drawn() -> None:
    assert "<circle" in lines({"a": [0.5]}, label="", axis="", text=str)
    assert "nothing to draw" in lines({"a": [None]}, label="", axis="", text=str)
    assert "nothing to draw" in strips({}, label="", axis="", text=str)


def test_a_strip_has_a_cell_for_every_value_and_tells_its_scale() -> None:
    drawn = strips({"a": [0.5, None, -0.25]}, label="", axis="layer", text="{:.2f}".format)
    svg = ElementTree.fromstring(drawn)
    cells = [node for node in svg if node.tag == "rect"]
    assert [cell.findtext("title") for cell in cells] == ["a, layer 0: 0.50", "a, layer 2: -0.25"]
    assert "full colour is 0.50, full opposite colour -0.50" in drawn


def test_shades_grow_with_the_value_and_tell_the_sign() -> None:
    def strength(text: str) -> float:
        return float(re.findall(r"[\d.]+", text)[-1])

    assert strength(shade(0.9, 1)) > strength(shade(0.2, 1))
    assert shade(-0.5, 1).rpartition(",")[0] != shade(0.5, 1).rpartition(",")[0]
    assert strength(shade(0.5, 1)) == strength(shade(-0.5, 1))
    assert strength(shade(7, 1)) == strength(shade(1, 1))


def test_names_are_escaped() -> None:
    wild = '<b>&"'
    for drawn in (
        lines({wild: [1.0, 2.0]}, label=wild, axis=wild, text=str),
        strips({wild: [1.0]}, label=wild, axis=wild, text=str),
        matrix([wild], [wild], lambda i, j: 0.5, str),
        table([wild], [[wild]]),
    ):
        assert "<b>" not in drawn
