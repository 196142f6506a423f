"""The verb `report`: text, JSON and a page; nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call


def test_text_has_a_line_for_every_pair_and_layer(call: Call, recipe: Path) -> None:
    done = call("report", recipe)
    assert done.exit_code == 0, done.stderr
    experts, pairs, layers = done.stdout.split("\n\n")
    assert [line.split()[0] for line in experts.splitlines()] == ["expert", "math", "code"]
    assert pairs.splitlines()[1].startswith("math ~ code")
    assert [line.split()[0] for line in layers.splitlines()] == ["layer", "0", "1"]


def test_page_and_json_in_one_go(call: Call, recipe: Path, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    done = call("report", recipe, "--html", html, "--json", "--threads", 1)
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert set(data["layers"]) == {"0", "1"}
    assert f"wrote {html}" in done.stderr
    assert f"{data['total']['cosine']['math~code']:.3f}" in html.read_text()
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_a_change_on_the_command_line_counts(call: Call, recipe: Path) -> None:
    step = 'steps=[{"magnitude": {"density": 0.1}}, "task_arithmetic"]'
    plain, trimmed = (
        json.loads(call("report", recipe, "--json", *more).stdout)["total"]["kept"]["math"]
        for more in ((), ("--set", step))
    )
    assert trimmed < 0.2 < 0.9 < plain


@pytest.mark.parametrize("place", ["missing/report.html", "."])
def test_a_place_that_cannot_be_written_is_told_before_reading(
    call: Call, recipe: Path, tmp_path: Path, place: str
) -> None:
    done = call("report", recipe, "--html", tmp_path / place)
    assert done.exit_code == 2
    assert "folder" in done.stderr


def test_a_wrong_recipe_is_told_with_its_line(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("base: ./none\nexperts: {a: {model: ./none}}\nsteps: [tise]\n")
    done = call("report", path)
    assert done.exit_code == 2
    assert "wrong.yaml:3" in done.stderr


def test_results_of_eval_are_put_on_the_page(call: Call, recipe: Path, tmp_path: Path) -> None:
    merge = {"news": {"bits_per_byte": 1.25, "nats": [1.0]}}
    scores = {"model": "out", "scores": {"merge": merge}, "faults": []}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    html = tmp_path / "report.html"
    done = call("report", recipe, "--html", html, "--scores", tmp_path / "scores.json")
    assert done.exit_code == 0, done.stderr
    assert "news (bits per byte)" in html.read_text()
    assert "1.250" in html.read_text()


def test_results_that_are_none_are_told_before_reading(
    call: Call, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "probe.json").write_text("{}")
    html = tmp_path / "report.html"
    done = call("report", recipe, "--html", html, "--routing", tmp_path / "probe.json")
    assert done.exit_code == 3
    assert "moe probe --json" in done.stderr
    assert not html.exists()
    assert call("report", recipe, "--routing", tmp_path / "probe.json").exit_code == 2


def test_experts_of_a_routed_model_are_compared_as_what_they_come_from(
    call: Call, recipe: Path
) -> None:
    routed = 'moe={"target": "mixtral", "experts_per_token": 2, "gate": "zeros"}'
    plain, done = (
        call("report", recipe, "--json"),
        call("report", recipe, "--json", "--set", routed),
    )
    assert done.exit_code == 0, done.stderr
    for part in ("total", "layers", "roles"):
        assert json.loads(done.stdout)[part] == json.loads(plain.stdout)[part]
