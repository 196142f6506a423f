"""F18: texts that a model is made by are not those that it is judged by, or it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mergekit_lite import api
from mergekit_lite.cli.main import main
from tests.calibrate.conftest import save_model
from tests.checkpoints import write_tokenizer
from tests.moe.routed import make

TOLD = "by which the result is judged"
TEXT = "w4 w5 w6 w7\n" * 20


def warned(recipe: dict[str, Any], data: Path) -> str:
    """Return the warnings of a recipe that is judged by a text."""
    bound = {"data": "held", "score": "bits_per_byte", "at_most": 9}
    expect = {"data": {"held": str(data)}, "bounds": [bound]}
    return "\n".join(api.plan({**recipe, "expect": expect}).warnings)


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    """A text, and another one."""
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_text(TEXT)
    other.write_text(TEXT + "w9\n")
    return same, other


def test_texts_of_a_carve_and_of_gates(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    base = save_model(tmp_path / "base", "llama")
    carve = {"experts": 4, "experts_per_token": 2, "method": "cmoe", "data": str(texts[0])}
    recipe: dict[str, Any] = {"base": str(base), "moe": {"carve": carve}}
    copy = tmp_path / "copy.txt"  # another name for the same text
    copy.write_text(TEXT)
    told = f"the texts for the carve are those of `expect.data.held`, {TOLD}"
    assert told in warned(recipe, copy)
    assert TOLD not in warned(recipe, texts[1])
    experts = [{"expert": "base", "data": str(file)} for file in texts]
    recipe["moe"] = {"experts": experts, "gate": "ridge", "for_training": True}
    assert "the texts for expert `base` are those" in warned(recipe, copy)
    copy.write_text("w9\n")
    assert TOLD not in warned(recipe, copy)


def test_texts_that_experts_were_measured_on(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    base = make("mixtral", tmp_path / "base")
    write_tokenizer(base, 96)
    stats = tmp_path / "stats"
    asked = ["calibrate", str(base), "--data", f"a={texts[0]}", "--collect", "rates"]
    done = CliRunner().invoke(main, [*asked, "-o", str(stats)])
    assert done.exit_code == 0, done.output
    recipe = {
        "base": str(base),
        "moe": {"prune": {"keep": 4, "method": "frequency", "stats": str(stats)}},
    }
    assert TOLD in warned(recipe, texts[0])
    assert TOLD not in warned(recipe, texts[1])
    merge = {"keep": 4, "method": "m_smoe", "align": "none", "stats": str(stats)}
    assert TOLD in warned({"base": str(base), "moe": {"merge": merge}}, texts[0])
    record = json.loads((stats / "calibration.json").read_text())
    assert len(record["files"]) == 1
