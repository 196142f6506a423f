"""`mergekit-lite import`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mergekit_lite import api
from tests.cli.conftest import Call

CARD = """\
# A merge of maths and code.
models:
  - model: ./base
    # nothing for the base
  - model: ./math # the good one
    parameters: {weight: "0.5", density: 0.3}
  - model: ./code
    parameters:
      weight: [0.1, 9e-1]
      density:
        - {filter: "#mlp", value: 0.5}   # code lives in "#mlp"
        - {filter: self_attn, value: 0.7}
        - value: 0.4
merge_method: ties
base_model: base/
parameters: {int8_mask: true, normalize: true, t: 3}
dtype: bfloat16
# the end
"""

OURS = """\
# From card.yml, a recipe of mergekit.
# A merge of maths and code.
schema_version: 1
base: base/
experts:
  # nothing for the base
  # the good one
  math: {model: ./math, weight: 0.5}
  code: {model: ./code, weight: [0.1, 0.9]}
steps:
  - ties: {density: {math: 0.3, code: 0.4}, agg: mean}
rules:
  - {match: '*self_attn*', set: {density: {code: 0.7}}}
  # code lives in "#mlp"
  - {match: '*#mlp*', set: {density: {code: 0.5}}}
output: {dtype: bfloat16}
# the end
compat: mergekit
"""


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "math", "code"):
        (tmp_path / name).mkdir()
    (tmp_path / "card.yml").write_text(CARD)
    return Path("card.yml")


def test_it_says_the_same_in_our_language(card: Path, call: Call) -> None:
    done = call("import", card)
    assert (done.exit_code, done.stdout) == (0, OURS)
    assert done.stderr.splitlines() == [
        "note: card.yml:16:14: `int8_mask` is left out: it changes no number",
        "note: card.yml:16:48: `t` is left out, as mergekit does: `ties` has no such parameter",
    ]


def test_what_it_writes_is_read_as_the_same_recipe(card: Path, call: Call) -> None:
    assert call("import", card, "-o", "ours.yaml").exit_code == 0
    assert api.load("ours.yaml").plain() == api.load(card).plain()


def test_paths_are_spelt_from_the_new_file(card: Path, call: Call, tmp_path: Path) -> None:
    assert call("import", card, "--out", "deep/er/ours.yaml").exit_code == 0
    written = yaml.safe_load(Path("deep/er/ours.yaml").read_text())
    assert written["base"] == "../../base"
    assert written["experts"]["math"]["model"] == "../../math"


def test_a_file_that_is_there_stays(card: Path, call: Call) -> None:
    Path("ours.yaml").write_text("mine")
    done = call("import", card, "-o", "ours.yaml")
    assert (done.exit_code, Path("ours.yaml").read_text()) == (2, "mine")
    assert "add --overwrite" in done.stderr
    assert call("import", card, "-o", "ours.yaml", "--overwrite").exit_code == 0
    assert Path("ours.yaml").read_text() == OURS


def test_all_problems_are_told(card: Path, call: Call) -> None:
    card.write_text(CARD.replace("ties", "tise").replace("bfloat16", "bf16"))
    done = call("import", card)
    assert done.exit_code == 2
    assert "unknown merge method `tise`" in done.stderr
    assert "unknown dtype `bf16`" in done.stderr


def test_our_own_recipes_need_no_import(card: Path, call: Call) -> None:
    card.write_text("base: ./base\nsteps: [take: {source: base}]\n")
    done = call("import", card)
    assert done.exit_code == 2
    assert "this is a recipe of mergekit-lite already" in done.stderr
