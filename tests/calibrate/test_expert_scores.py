"""Which experts matter for texts, by hand-made counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mergekit_lite.calibrate.expert_scores import differences, esft_config, expert_scores, fewest
from mergekit_lite.cli.main import main
from mergekit_lite.errors import DataError, RecipeError, SourceError
from tests.moe import dense, routed

COUNTS = {1: [[6.0, 2, 1, 1], [0, 0, 9, 1]], 2: [[1, 1, 4, 4], [4, 4, 1, 1]]}
WEIGHTS = {1: [1.0, 8, 0.5, 0.5], 2: [2.5, 2.5, 2.5, 2.5]}


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    """Two routed layers behind a dense one, and texts of two domains."""
    (tmp_path / "rates").mkdir()
    (tmp_path / "calibration.json").write_text('{"domains": ["math", "code"]}')
    for layer, counts in COUNTS.items():
        root = f"model.layers.{layer}.mlp.gate"
        found = {"count": counts, "weight": WEIGHTS[layer]}
        tensors = {f"{root}.{key}": torch.tensor(own).double() for key, own in found.items()}
        save_file(tensors, tmp_path / "rates" / f"layer-{layer:05d}.safetensors")
    return tmp_path


def test_scores_of_a_layer_add_up_to_one(stats: Path) -> None:
    tokens, gates = expert_scores(stats), expert_scores(stats, "gate")
    np.testing.assert_allclose(tokens[1], [0.3, 0.1, 0.5, 0.1])
    np.testing.assert_allclose(gates[1], [0.1, 0.8, 0.05, 0.05])
    np.testing.assert_allclose(tokens[2], [0.25] * 4)
    assert list(tokens) == [1, 2]


def test_the_fewest_experts_that_reach_a_part(stats: Path) -> None:
    shape = {"shared_experts": False, "non_expert_modules": False}
    assert esft_config(stats) == {"experts": {"1": [2], "2": [0]}, **shape}
    assert esft_config(stats, part=0.5) == {"experts": {"1": [2], "2": [0, 1]}, **shape}
    assert esft_config(stats, part=0.75) == {"experts": {"1": [0, 2], "2": [0, 1, 2]}, **shape}
    assert esft_config(stats, "gate", 0.81)["experts"] == {"1": [0, 1], "2": [0, 1, 2, 3]}


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.floats(0.01, 1))
def test_one_expert_less_would_not_reach_it(scores: list[float], part: float) -> None:
    shares = np.array(scores) / sum(scores)
    chosen = list(fewest(shares, part))
    assert shares[chosen].sum() >= part - 1e-9
    least = min(chosen, key=lambda expert: shares[expert])
    assert shares[chosen].sum() - shares[least] < part
    assert shares[chosen].min() >= np.delete(shares, chosen).max(initial=0)


def test_where_two_domains_differ(stats: Path) -> None:
    found = differences(stats, "math", "code")
    assert found[:2] == [(pytest.approx(0.6), 1, 0), (pytest.approx(0.3), 2, 2)]
    assert found[-1] == (pytest.approx(-0.8), 1, 2)
    assert len(found) == 8
    with pytest.raises(RecipeError, match="no domain `maths`"):
        differences(stats, "maths", "code")


def test_statistics_that_say_nothing(stats: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no statistics"):
        expert_scores(tmp_path / "none")
    root = "model.layers.1.mlp.gate"
    silent = {
        f"{root}.count": torch.zeros(2, 4).double(),
        f"{root}.weight": torch.zeros(4).double(),
    }
    save_file(silent, stats / "rates" / "layer-00001.safetensors")
    with pytest.raises(DataError, match="no expert of layer 1 was ever chosen"):
        expert_scores(stats)
    for file in (stats / "rates").iterdir():
        file.unlink()
    with pytest.raises(SourceError, match="does not say which experts are chosen"):
        expert_scores(stats)


def run(*words: Any) -> Any:
    return CliRunner().invoke(main, ["moe", "scores", *map(str, words)])


def test_the_command(stats: Path) -> None:
    shown = run(stats, "--part", 0.75, "-o", stats / "expert_cfg.json")
    assert shown.exit_code == 0, shown.output
    assert "80.0 %" in shown.output
    written = json.loads((stats / "expert_cfg.json").read_text())
    assert written["experts"] == {"1": [0, 2], "2": [0, 1, 2]}
    compared = run(stats, "--of", "math", "--against", "code", "--top", 1)
    assert "+60.0 %" in compared.output
    assert run(stats, "--of", "math").exit_code == 2


@pytest.mark.parametrize(("family", "names"), [("qwen3_moe", 3), ("granitemoe", 0)])
def test_all_but_the_experts_to_train_stays_as_it_is(
    stats: Path, tmp_path: Path, family: str, names: int
) -> None:
    """Experts that are stored one by one, and all of a layer in one tensor."""
    model = routed.make(family, tmp_path / "model")
    out = tmp_path / "cfg" / "expert_cfg.json"
    shown = run(stats, "--part", 0.75, "--model", model, "-o", out)
    assert shown.exit_code == 0, shown.output
    mask = json.loads(out.with_name("freeze_mask.json").read_text())
    stored = set(dense.shapes(model))
    free = stored - set(mask["frozen"]) - set(mask["frozen_experts"])
    if names:
        wanted = {1: [0, 2], 2: [0, 1, 2]}
        parts = ("gate_proj", "up_proj", "down_proj")
        assert free == {
            f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
            for layer, experts in wanted.items()
            for expert in experts
            for part in parts
        }
    else:
        assert free == set()
        root = "model.layers.1.block_sparse_moe"
        assert mask["frozen_experts"][f"{root}.input_linear.weight"] == [1, 3, 4, 5, 6, 7]
        assert len(mask["frozen_experts"]) == 4
    assert "model.embed_tokens.weight" in mask["frozen"]


def test_a_mask_is_of_the_model_that_was_measured(stats: Path, tmp_path: Path) -> None:
    few = routed.make("mixtral", tmp_path / "few", num_local_experts=2)
    asked = ["--part", 1, "-o", stats / "expert_cfg.json"]
    shown = run(stats, *asked, "--model", few)
    assert (shown.exit_code, "no expert 3 in layer 1" in shown.output) == (3, True)
    assert not (stats / "expert_cfg.json").exists()
    dense_one = dense.make("llama", tmp_path / "dense")
    assert "has no experts in layer 1" in run(stats, *asked, "--model", dense_one).output
    record = {"domains": ["math", "code"], "model_sha256": "0" * 64}
    (stats / "calibration.json").write_text(json.dumps(record))
    assert "measured of another model" in run(stats, *asked, "--model", few).output
    assert run(stats, "--model", few).exit_code == 2
