"""The verb: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mergekit_lite
from mergekit_lite.cli.search import command
from mergekit_lite.errors import RecipeError


@pytest.fixture
def folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a copy of everything, and held-out data."""
    shutil.copytree(home, tmp_path / "here")
    (tmp_path / "here" / "later.txt").write_text("w20 w21 w22 w23 w24\n" * 3)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def call(*words: str) -> Result:
    return CliRunner().invoke(command, [*words, "--window-bytes", "16", "--threads", "1"])


def test_candidates_are_told_and_the_best_is_written(folder: Path) -> None:
    done = call("recipe.yaml", "-o", "best.yaml", "--trials", "2", "--test", "later.txt", "--json",
                "--report", "page.html")  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [trial["number"] for trial in told["trials"]] == [0, 1]
    assert set(told["best"]["scores"]) == {"left: bits_per_byte", "right: bits_per_byte"}
    assert told["test"]["later"]["bits_per_byte"] > 0
    assert "written: best.yaml" in done.stderr
    assert "number 1" in (folder / "page.html").read_text()
    weight = mergekit_lite.load("best.yaml").experts["one"].weight
    assert weight == told["best"]["values"]["experts.one.weight"]


@pytest.mark.parametrize("method", ["greedy", "adamerging"])
def test_methods_without_marks(folder: Path, method: str) -> None:
    words = ("--set", "steps=[task_arithmetic]", "--method", method, "--steps", "1")
    done = call("recipe.yaml", "-o", "best.yaml", *words)
    assert done.exit_code == 0, done.output
    assert "best: number" in done.stdout
    assert f"# {method}, seed 0" in (folder / "best.yaml").read_text()
    mergekit_lite.plan("best.yaml")
    done = call("recipe.yaml", "-o", "other.yaml", *words, "--storage", "s.log")
    assert done.exit_code == 2
    assert "leave out --storage" in done.stderr


def test_the_file_is_not_replaced_unasked(folder: Path) -> None:
    (folder / "best.yaml").write_text("mine")
    done = call("recipe.yaml", "-o", "best.yaml")
    assert isinstance(done.exception, RecipeError)
    assert "is there already" in str(done.exception)
    done = call("recipe.yaml", "-o", "no/best.yaml")
    assert "there is no folder" in str(done.exception)
    assert (folder / "best.yaml").read_text() == "mine"
