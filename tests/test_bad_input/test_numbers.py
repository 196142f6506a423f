"""Weights that are broken as numbers, and tensors of odd sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints import read_weights, write_weights

from .conftest import LINEAR, World

Q1 = "model.layers.1.self_attn.q_proj.weight"


def _spoil(folder: Path, name: str, *values: float) -> None:
    weights = read_weights(folder)
    weights[name].view(-1)[: len(values)] = torch.tensor(values).to(weights[name].dtype)
    write_weights(folder, weights)


@pytest.mark.parametrize("model", ["base", "math", "code"])
def test_nan_and_infinity_in_an_input(world: World, model: str) -> None:
    _spoil(world.folder / model, Q1, float("nan"), float("inf"), float("-inf"))
    path = world.write(LINEAR)
    before = world.files()
    result = world.call("run", path, "-o", world.out)
    world.said(result, 3, f"{model}: {Q1}", "3 of 1,024 entries", "--allow-nonfinite")
    world.untouched(before)


def test_folders_made_on_the_way_are_removed_again(world: World) -> None:
    _spoil(world.math, Q1, float("nan"))
    path = world.write(LINEAR)
    before = world.files()
    assert world.call("run", path, "-o", world.folder / "a" / "b" / "out").exit_code == 3
    world.untouched(before)


def test_nan_is_let_pass_on_demand(world: World) -> None:
    _spoil(world.math, Q1, float("nan"))
    result = world.run(LINEAR, "--allow-nonfinite")
    assert result.exit_code == 0, result.stderr
    merged = read_weights(world.out)
    assert merged.pop(Q1).isnan().sum() == 1
    assert not any(value.isnan().any() for value in merged.values())


def test_result_that_does_not_fit_the_dtype(world: World) -> None:
    _spoil(world.math, Q1, 3e38)
    path = world.write(LINEAR + "output: {dtype: float16}\n")
    before = world.files()
    result = world.call("run", path, "-o", world.out)
    world.said(result, 3, Q1, "1 of 1,024", "F16", "bfloat16")
    world.untouched(before)


@pytest.mark.parametrize(
    "step",
    [
        "ties: {density: 0.001}",
        "breadcrumbs_ties: {density: 0.001, gamma: 0.01}",
        "dare_ties: {density: 0.001}",
        "slerp: {t: 0.5}",
    ],
)
def test_tiny_tensors_with_low_density(world: World, step: str) -> None:
    odd = {
        "scalar": torch.tensor(1.5),
        "one": torch.ones(1),
        "tall": torch.linspace(-1, 1, 5).reshape(5, 1),
        "empty": torch.ones(0, 4),
    }
    for number, folder in enumerate((world.base, world.math, world.code)):
        write_weights(folder, {name: value * (1 + number) for name, value in odd.items()})
    result = world.run(LINEAR.replace("task_arithmetic: {lambda: 0.8}", step))
    assert result.exit_code == 0, result.stderr
    merged = read_weights(world.out)
    assert {name: value.shape for name, value in merged.items()} == {
        name: value.shape for name, value in odd.items()
    }
    assert all(value.isfinite().all() for value in merged.values())
    if step.startswith("ties"):
        # The largest entry is kept however low the density: max(1, round(density x n)).
        assert merged["one"] > 1


def test_tensors_larger_than_a_shard(world: World) -> None:
    weights = read_weights(world.base)
    assert next(iter(weights)) == "model.embed_tokens.weight"
    result = world.run(LINEAR, "--shard-size", "3kB")
    assert result.exit_code == 0, result.stderr
    files = sorted(world.out.glob("*.safetensors"))
    held = [read_weights(file) for file in files]
    assert all(held)
    for part in held:
        size = sum(value.numel() * value.element_size() for value in part.values())
        assert size <= 3000 or len(part) == 1
    assert set().union(*held) == set(weights)
    assert any(len(part) > 1 for part in held)
    assert f"-of-{len(files):05d}.safetensors" in files[0].name
    assert world.call("verify", world.out).exit_code == 0
