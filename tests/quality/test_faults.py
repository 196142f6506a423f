"""Faults that are planted into a merge, and a merge without one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mergekit_lite.cli.main import main
from mergekit_lite.errors import Problem
from mergekit_lite.quality.configs import config_faults
from mergekit_lite.quality.faults import Kin, faults_of
from mergekit_lite.quality.kinship import kinship
from mergekit_lite.sources import Model, resolve
from tests.calibrate.conftest import save_model
from tests.checkpoints import perturbed, read_weights, write_weights

Weights = dict[str, torch.Tensor]
Q, K = (f"model.layers.1.self_attn.{part}_proj.weight" for part in "qk")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with as many heads of keys as of queries, three experts, and a merge of two."""
    home = tmp_path_factory.mktemp("faults")
    save_model(home / "base", "llama", num_key_value_heads=4)
    for seed, name in enumerate(("one", "two", "three"), 1):
        perturbed(home / "base", home / name, seed=seed, scale=0.02)
    base, one, two = (read_weights(home / name) for name in ("base", "one", "two"))
    shutil.copytree(home / "base", home / "merge")
    merge = {n: w + 0.5 * (one[n] - w) + 0.3 * (two[n] - w) for n, w in base.items()}
    write_weights(home / "merge", merge)
    (home / "words.txt").write_text("w4 w6 w8 w10\nw5 w7 w9 w11\n")
    return home


def model(folder: Path) -> Model:
    return resolve(str(folder), relative_to=Path())


def planted(home: Path, out: Path, change: Callable[[Weights], None]) -> Path:
    shutil.copytree(home / "merge", out)
    weights = read_weights(out)
    change(weights)
    write_weights(out, {name: value.contiguous() for name, value in weights.items()})
    return out


def found(home: Path, folder: Path, *experts: str) -> list[Problem]:
    kin = Kin(model(home / "base"), {name: model(home / name) for name in experts})
    return faults_of(model(folder), kin)


def nan(weights: Weights) -> None:
    weights[Q][3, 4] = float("nan")


def no_layer(weights: Weights) -> None:
    for name in weights:
        if name.startswith("model.layers.1.") and "norm" not in name:
            weights[name].zero_()


def no_matrix(weights: Weights) -> None:
    weights[Q].zero_()


def exchanged(weights: Weights) -> None:
    weights[Q], weights[K] = weights[K], weights[Q]


def shifted(weights: Weights) -> None:
    name = "model.embed_tokens.weight"
    weights[name] = weights[name].roll(1, 0)


PLANTED = [
    (nan, Q, "1 entry is NaN or infinite"),
    (no_layer, "model.layers.1", "all matrices of the layer are zeros"),
    (no_matrix, Q, "all entries are zero"),
    (exchanged, Q, f"it is the base's `{K}`"),
    (shifted, "model.embed_tokens.weight", "its rows are the base's, moved by +1"),
]


def test_a_merge_without_a_fault_has_none(home: Path) -> None:
    assert found(home, home / "merge", "one", "two") == []
    assert faults_of(model(home / "merge"), Kin()) == []
    assert found(home, home / "base") == []


@pytest.mark.parametrize(("change", "where", "what"), PLANTED)
def test_a_planted_fault_is_found(
    home: Path, tmp_path: Path, change: Callable[[Weights], None], where: str, what: str
) -> None:
    problems = found(home, planted(home, tmp_path / "bad", change), "one", "two")
    said = [problem for problem in problems if problem.where == where]
    assert len(said) == 1
    assert what in said[0].what
    assert {problem.where for problem in problems} <= {where, K}


def test_nan_and_layers_of_zeros_are_found_without_any_parent(home: Path, tmp_path: Path) -> None:
    for change, where, what in PLANTED[:2]:
        folder = planted(home, tmp_path / change.__name__, change)
        assert [(p.where, p.what) for p in faults_of(model(folder), Kin())] == [(where, what)]


def test_an_expert_that_was_never_merged_is_found(home: Path) -> None:
    (problem,) = found(home, home / "merge", "one", "two", "three")
    assert problem.where == "expert three"
    assert "nothing of it is in the merge" in problem.what
    only = found(home, home / "base", "one")
    assert [p.where for p in only] == ["expert one"]


def test_shares_of_experts_are_those_they_were_merged_with(home: Path) -> None:
    experts = {name: model(home / name) for name in ("one", "two", "three")}
    shares = kinship(model(home / "merge"), model(home / "base"), experts).shares()
    assert shares == pytest.approx({"one": 0.5, "two": 0.3, "three": 0.0}, abs=1e-4)


def test_experts_that_share_a_direction_are_told_apart(home: Path, tmp_path: Path) -> None:
    base, one, two = (read_weights(home / name) for name in ("base", "one", "two"))
    shutil.copytree(home / "base", tmp_path / "near")
    near = {n: one[n] + 0.3 * (two[n] - base[n]) for n in base}
    write_weights(tmp_path / "near", near)
    experts = {"one": model(home / "one"), "near": model(tmp_path / "near")}
    related = kinship(model(home / "one"), model(home / "base"), experts)
    assert related.shares()["near"] == pytest.approx(0.0, abs=1e-4)
    assert [problem.where for problem in related.faults] == ["expert near"]


def test_an_expert_that_is_the_base_is_not_missed(home: Path) -> None:
    experts = {"one": model(home / "one"), "same": model(home / "base")}
    assert kinship(model(home / "merge"), model(home / "base"), experts).faults == []


def test_one_tensor_of_an_expert_is_enough(home: Path, tmp_path: Path) -> None:
    three = read_weights(home / "three")
    folder = planted(home, tmp_path / "part", lambda weights: weights.update({Q: three[Q]}))
    assert found(home, folder, "one", "two", "three") == []


OLD = {"rope_theta": 1e4, "rms_norm_eps": 1e-5, "num_attention_heads": 4}
NEW = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "rms_norm_eps": 1e-5}


def test_configs_of_two_versions_say_the_same() -> None:
    assert list(config_faults(NEW, [OLD])) == []
    assert list(config_faults({"text_config": NEW}, [OLD])) == []
    assert list(config_faults(NEW, [])) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope base is 500000.0"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}, "rope scaling is"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06, that of its parents 1e-05"),
    ],
)
def test_a_config_that_no_parent_has_is_found(change: dict[str, object], what: str) -> None:
    (problem,) = config_faults({**NEW, **change}, [OLD, NEW])
    assert what in problem.what


def test_eval_tells_of_faults_and_exits_with_3(home: Path, tmp_path: Path) -> None:
    bad = planted(home, tmp_path / "bad", exchanged)
    config = json.loads((bad / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5e5
    (bad / "config.json").write_text(json.dumps(config))
    names = [f"--parent={name}={home / name}" for name in ("base", "one", "three")]
    words = ["eval", str(bad), f"--data=w={home / 'words.txt'}", *names, "--json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 3, result.output
    told = {problem["where"] for problem in json.loads(result.stdout)["faults"]}
    assert told == {Q, K, "config.json", "expert three"}
    assert "rope base is 500000.0" in result.stderr


def test_verify_reads_the_weights_where_it_is_asked_to(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "three", tmp_path / "nan")
    weights = read_weights(tmp_path / "nan")
    nan(weights)
    write_weights(tmp_path / "nan", weights)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {home / 'base'}\n"
        f"experts: {{one: {home / 'one'}, lost: {home / 'two'}, nan: ./nan}}\n"
        "steps: [{linear: {weights: {one: 1, lost: 0, nan: 0}}}]\n"
        f"rules: [{{match: '{Q}', take: nan}}]\n"
    )
    out = str(tmp_path / "out")
    run = CliRunner().invoke(main, ["run", str(recipe), "-o", out, "--allow-nonfinite"])
    assert run.exit_code == 0, run.output
    assert CliRunner().invoke(main, ["verify", out]).exit_code == 0
    found = CliRunner().invoke(main, ["verify", out, "--weights"])
    assert found.exit_code == 3
    assert f"{Q}: 1 entry is NaN or infinite" in found.stderr
    whole = ["verify", out, "--weights", "--inputs", "--relative-to", str(tmp_path)]
    beside = CliRunner().invoke(main, whole)
    assert beside.exit_code == 3
    assert "expert lost: nothing of it is in the merge" in beside.stderr
