"""Ops of another package, by entry point: on tiles, on the model, on matrices, on calibration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite import api
from mergekit_lite.errors import RecipeError
from mergekit_lite.testing import conformance_cases
from tests.checkpoints import read_weights, write_json
from tests.seams.conftest import SITE

Pair = tuple[Path, Path]
Weights = dict[str, torch.Tensor]


def recipe(pair: Pair, *steps: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "base": str(pair[0]),
        "experts": {"x": {"model": str(pair[1])}},
        "steps": [*steps, {"task_arithmetic": {}}],
        "output": {"dtype": "float32"},
    }


def merged(pair: Pair, out: Path, *steps: dict[str, Any]) -> tuple[Weights, Weights, Weights]:
    """Run the steps and return the base, the expert's deltas and the result."""
    api.run(recipe(pair, *steps), out)
    base, expert = read_weights(pair[0]), read_weights(pair[1])
    return base, {name: expert[name] - base[name] for name in base}, read_weights(out)


@pytest.mark.usefixtures("kit")
def test_an_op_on_tiles(pair: Pair, tmp_path: Path) -> None:
    base, delta, result = merged(pair, tmp_path / "out", {"clip": {"limit": 0.01}})
    for name, value in base.items():
        assert torch.equal(result[name], value + delta[name].clamp(-0.01, 0.01))


@pytest.mark.usefixtures("kit")
def test_an_op_that_ranks_the_whole_model(pair: Pair, tmp_path: Path) -> None:
    base, delta, result = merged(pair, tmp_path / "out", {"keep_largest": {"count": 50}})
    every = torch.cat([value.abs().flatten() for value in delta.values()])
    threshold = every.sort(descending=True).values[49]
    changed = {name: result[name] != value for name, value in base.items()}
    assert sum(int(mask.sum()) for mask in changed.values()) == 50
    for name, mask in changed.items():
        assert torch.equal(mask, delta[name].abs() >= threshold)


@pytest.mark.usefixtures("kit")
def test_an_op_on_whole_matrices(pair: Pair, tmp_path: Path) -> None:
    base, delta, result = merged(pair, tmp_path / "out", {"first_component": {}})
    for name, value in base.items():
        if value.dim() == 2:
            found = (result[name] - value).double()
            largest = torch.linalg.svdvals(delta[name].double())[0]
            sizes = torch.linalg.svdvals(found)
            assert sizes[0] == pytest.approx(float(largest), rel=1e-5)
            assert sizes[1] < 1e-5 * sizes[0]
        else:
            assert torch.equal(result[name], value + delta[name])


@pytest.mark.usefixtures("kit")
def test_an_op_with_a_calibration_file(pair: Pair, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = {name: value.shape for name, value in read_weights(pair[0]).items()}
    importance = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    save_file(importance, tmp_path / "importance.safetensors")
    step = {"by_importance": {"file": "importance.safetensors"}}
    write_json(tmp_path / "recipe.yaml", recipe(pair, step))
    api.run(tmp_path / "recipe.yaml", tmp_path / "out")  # started from another folder
    base, expert, result = (read_weights(p) for p in (*pair, tmp_path / "out"))
    delta = {name: expert[name] - base[name] for name in base}
    for name, value in base.items():
        assert torch.equal(result[name], value + delta[name] * importance[name])


@pytest.mark.usefixtures("kit")
def test_a_calibration_file_that_is_not_there_is_told_before_the_run(pair: Pair) -> None:
    with pytest.raises(RecipeError, match=r"by_importance.file: there is no `none.safetensors`"):
        api.plan(recipe(pair, {"by_importance": {"file": "none.safetensors"}}))


@pytest.mark.usefixtures("kit")
@pytest.mark.parametrize("op", ["clip", "keep_largest", "first_component"])
def test_they_pass_the_shipped_conformance_suite(op: str) -> None:
    cases = list(conformance_cases(op))
    assert cases
    for case in cases:
        case()


@pytest.mark.usefixtures("kit")
def test_their_parameters_are_checked_like_any_other(pair: Pair) -> None:
    with pytest.raises(RecipeError, match="limit"):
        api.load(recipe(pair, {"clip": {"limit": -1.0}}))


def test_without_the_package_they_are_unknown(pair: Pair) -> None:
    with pytest.raises(RecipeError, match="clip"):
        api.load(recipe(pair, {"clip": {"limit": 0.01}}))


def test_the_command_finds_them(pair: Pair, tmp_path: Path) -> None:
    write_json(tmp_path / "recipe.yaml", recipe(pair, {"clip": {"limit": 0.01}}))
    paths = [str(SITE), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "mergekit_lite", "run", "recipe.yaml", "-o", "out"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    base, expert, result = (read_weights(p) for p in (*pair, tmp_path / "out"))
    name = "model.norm.weight"
    assert torch.equal(result[name], base[name] + (expert[name] - base[name]).clamp(-0.01, 0.01))
