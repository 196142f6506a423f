"""Bounds of recipes: judged by hand, and held by `run`, `check` and `eval`."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from mergekit_lite.cli.main import main
from mergekit_lite.quality.bounds import verdict
from mergekit_lite.quality.results import Baseline
from mergekit_lite.quality.scores import ChoiceScore, Evaluation, Likeness, TextScore
from mergekit_lite.recipe.schema import Bound
from tests.calibrate.conftest import save_model
from tests.checkpoints import perturbed

LOW = TextScore((1.0, 2.0, 3.0), (1, 1, 1), (1, 1, 1))
MIXED = TextScore((0.9, 2.5, 2.9), (1, 1, 1), (1, 1, 1))
HIGH = TextScore((1.2, 2.4, 3.6), (1, 1, 1), (1, 1, 1))


def judged(merged: TextScore, **bound: object) -> bool:
    found = Evaluation(
        "m",
        {"t": "v"},
        {"merge": {"t": merged}, "base": {"t": LOW}},
        {"base": {"t": Likeness((0.1, 0.2, 0.3), (1, 0, 1), (1, 1, 1))}},
    )
    earlier = Baseline({"t": "v"}, {"t": LOW})
    return verdict(Bound.model_validate({"data": "t", **bound}), found, earlier).holds


def test_bounds_on_values_by_hand() -> None:
    # 6 nats over 3 bytes are 2.885 bits a byte; e^2 is 7.39.
    assert judged(LOW, score="bits_per_byte", at_most=2.9)
    assert not judged(LOW, score="bits_per_byte", at_most=2.8)
    assert judged(LOW, score="perplexity", at_most=7.4)
    assert not judged(LOW, score="perplexity", at_most=7.3)
    assert judged(LOW, score="kl", against="base", at_most=0.21)
    assert not judged(LOW, score="kl", against="base", at_most=0.19)
    assert judged(LOW, score="agreement", against="base", at_least=0.66)
    assert not judged(LOW, score="agreement", against="base", at_least=0.68)


@pytest.mark.parametrize("against", ["base", "baseline"])
def test_recovery_falls_where_its_whole_interval_does(against: str) -> None:
    bound = {"score": "recovery", "against": against}
    assert judged(LOW, **bound, at_least=1)
    assert not judged(HIGH, **bound, at_least=0.9)
    assert judged(HIGH, **bound, at_least=0.83)
    # 6 / 6.3 is below 1, but one of the windows is better: not worse for sure.
    assert judged(MIXED, **bound, at_least=1)
    assert not judged(MIXED, **bound, at_least=1, confidence=0)


def test_flips_by_hand() -> None:
    now, before = ChoiceScore((0, 1, 1), (0, 0, 1)), ChoiceScore((0, 0, 0), (0, 0, 1))
    found = Evaluation("m", {"q": "v"}, {"merge": {"q": now}, "base": {"q": before}})
    bound = Bound(data="q", score="flips", against="base", at_most=0.3, confidence=0, where="x:1")
    fallen = verdict(bound, found)
    assert not fallen.holds
    assert fallen.problem is not None
    assert fallen.problem.what == "q: flips against base is 0.3333, must be at most 0.3"
    assert fallen.problem.where == "x:1"


def test_a_score_that_is_no_number_falls() -> None:
    broken = TextScore((float("nan"), 1.0), (1, 1), (1, 1))
    assert not judged(broken, score="bits_per_byte", at_most=1e9)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("expect")
    save_model(home / "base", "llama")
    for seed, name in enumerate(("one", "two"), 1):
        perturbed(home / "base", home / name, seed=seed, scale=0.05)
    (home / "words.txt").write_text("w4 w6 w8 w10\nw5 w7 w9 w11\nw12 w14 w16\n")
    return home


def called(home: Path, bounds: str, *words: str, more: str = "") -> Result:
    recipe = home / "recipe.yaml"
    recipe.write_text(
        f"""\
base: ./base
experts: {{one: {{model: ./one, weight: 0.5}}, two: {{model: ./two, weight: 0.5}}}}
steps: [task_arithmetic]
expect:
  data: {{words: words.txt}}
  window_bytes: 9
  bounds: [{bounds}]
{more}"""
    )
    verb, *rest = words
    target = [str(recipe)] if verb != "eval" else [rest.pop(0), "--recipe", str(recipe)]
    return CliRunner().invoke(main, [verb, *target, *rest])


GOOD = "{data: words, score: bits_per_byte, at_most: 99}"
BAD = "{data: words, score: kl, against: one, at_most: 0}"


def test_run_checks_and_keeps_the_model_whatever_comes_of_it(home: Path, tmp_path: Path) -> None:
    out, xml = tmp_path / "merged", tmp_path / "quality.xml"
    found = called(home, f"{GOOD}, {BAD}", "run", "-o", str(out), "--junit", str(xml))
    assert found.exit_code == 3, found.output
    assert found.stdout.strip() == str(out)
    assert (out / "model.safetensors").is_file()
    assert "words: kl against one is" in found.stderr
    assert "recipe.yaml:7:" in found.stderr
    lines = [line.split() for line in found.stderr.splitlines() if "must be" not in line]
    assert [line[-1] for line in lines if line[:1] == ["words:"]] == ["holds", "FELL"]
    assert ElementTree.fromstring(xml.read_text()).get("failures") == "1"

    again = called(home, f"{GOOD}, {BAD}", "run", "-o", str(out), "--overwrite", "--no-check")
    assert again.exit_code == 0, again.output
    same = called(home, GOOD, "eval", str(out))
    assert same.exit_code == 0, same.output
    assert called(home, BAD, "eval", str(out)).exit_code == 3


def test_run_check_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        assert called(home, GOOD, "run", "--check").exit_code == 0
        assert called(home, BAD, "run", "--check").exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_data_is_said_before_the_merge(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    wrong = "{data: words, score: accuracy, at_least: 0.5}"
    for verb in (["run", "-o", str(out)], ["check"], ["run", "--dry-run"]):
        found = called(home, wrong, *verb)
        assert found.exit_code == 2, found.output
        assert "`words` holds texts, which have no `accuracy`" in found.stderr
    lost = called(home, GOOD.replace("words", "lost"), "check")
    assert lost.exit_code == 2
    gone = called(home, GOOD, "run", "-o", str(out), "--set", "expect.data.words=gone.txt")
    assert gone.exit_code == 5, gone.output
    assert "gone.txt" in gone.stderr
    assert not out.exists()


def test_a_baseline_is_written_by_a_recipe_and_then_held(home: Path) -> None:
    bound = "{data: words, score: recovery, against: baseline, at_least: 1}"
    more = "  baseline: scores.json\n"
    model = str(home / "merged")
    assert called(home, GOOD, "run", "-o", model, "--no-check").exit_code == 0
    assert called(home, bound, "eval", model, more=more).exit_code == 5
    assert called(home, bound, "eval", model, "--update-baseline", more=more).exit_code == 0
    assert called(home, bound, "eval", model, more=more).exit_code == 0
    value = json.loads((home / "scores.json").read_text())
    value["versions"]["words"] = "other"
    (home / "scores.json").write_text(json.dumps(value))
    other = called(home, bound, "eval", model, more=more)
    assert other.exit_code == 3
    assert "another version of `words`" in other.stderr


def test_nothing_to_check_is_said(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(f"base: {home / 'base'}\nexperts: {{one: {home / 'one'}}}\nsteps: [linear]\n")
    found = CliRunner().invoke(main, ["run", str(recipe), "--check"])
    assert found.exit_code == 2
    assert "has no `expect` to check" in found.stderr
    mixed = called(home, GOOD, "eval", str(home / "one"), "--data", "x.txt")
    assert mixed.exit_code == 2
