"""Experts cut into slices with one gate: the dense model until it is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from tests.moe.dense import apart, config, tensor
from tests.moe.test_identity import copies
from tests.moe.test_refusals import refused

Dense = Callable[..., Path]


@pytest.mark.parametrize("per_token", [4, 8])
@pytest.mark.parametrize(
    ("donor", "target"),
    [("llama", "mixtral"), ("qwen3", "qwen3_moe"), ("llama", "glm4_moe"), ("llama", "granitemoe")],
)
def test_slices_with_one_gate_are_the_dense_model(
    dense: Dense, tmp_path: Path, donor: str, target: str, per_token: int
) -> None:  # 4.6
    recipe = copies(
        dense(donor), target, experts=["base"] * 2, split=4, experts_per_token=per_token
    )
    api.run(recipe, tmp_path / "routed")
    assert apart(dense(donor), tmp_path / "routed") < 5e-6
    found = config(tmp_path / "routed")
    assert (found["num_experts"], found["num_experts_per_tok"]) == (8, per_token)


def test_rows_of_a_gate_are_repeated_and_rows_of_weights_copied(
    dense: Dense, tmp_path: Path
) -> None:
    recipe = copies(dense("llama"), "mixtral", experts=["base"] * 2, split=4, experts_per_token=4)
    kinds = {job.name: job.kind for job in api.plan(recipe).jobs}
    block = "model.layers.0.block_sparse_moe"
    assert kinds[f"{block}.experts.5.w1.weight"] == "copy"  # whole rows
    assert kinds[f"{block}.experts.5.w2.weight"] == "merge"  # columns, four times as large
    api.run(recipe, tmp_path / "routed")
    gate = tensor(tmp_path / "routed", f"{block}.gate.weight")
    assert torch.equal(gate[:4], gate[:1].expand(4, -1))
    assert not torch.equal(gate[3], gate[4])
    down = tensor(dense("llama"), "model.layers.0.mlp.down_proj.weight")
    assert torch.equal(
        tensor(tmp_path / "routed", f"{block}.experts.5.w2.weight"), 4 * down[:, 12:24]
    )


def test_the_layout_of_deepseek(dense: Dense, tmp_path: Path) -> None:  # 6.4
    experts: list[Any] = [{"expert": "base", "residual_scale": 0.0}] * 2
    recipe = copies(dense("llama"), "glm4_moe", experts=experts, split=4, shared="base",
                    experts_per_token=4)  # fmt: skip
    api.run(recipe, tmp_path / "routed")
    assert apart(dense("llama"), tmp_path / "routed") < 5e-6
    assert config(tmp_path / "routed")["n_shared_experts"] == 4


def test_slices_must_come_out_even(dense: Dense) -> None:
    text = refused(copies(dense("llama"), "mixtral", split=5, experts_per_token=5))
    assert "width 48 cannot be cut into 5 slices" in text
    text = refused(copies(dense("llama"), "mixtral", split=4, experts_per_token=6))
    assert "no whole number of experts" in text


def test_sixteen_bits_may_mix_slices(dense: Dense) -> None:  # F24b
    plan = api.plan(copies(dense("llama"), "mixtral", split=4, experts_per_token=4))
    assert any("passes slices of both" in warning for warning in plan.warnings)
    plan = api.plan(copies(dense("llama"), "glm4_moe", split=4, experts_per_token=4))
    assert not any("passes slices of both" in warning for warning in plan.warnings)
