"""Merged experts under the whole router compute what each row choosing its group's expert would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from mergekit_lite.errors import RecipeError
from tests.moe import dense, routed
from tests.moe.own_code import load, logits

pytestmark = pytest.mark.usefixtures("modules_of_their_own")
GROUPS = {"0": [[3, 5], [0, 1, 2]], "1": [[6, 7], [1, 4, 2]], "2": [[0, 7], [1, 2, 3]]}


def described(base: Path, groups: Any = GROUPS, **merge: Any) -> dict[str, Any]:
    asked = {"method": "listed", "groups": groups, "align": "none", "router": "map", **merge}
    return {"base": str(base), "moe": {"merge": asked}}


def grouped(base: Path) -> torch.Tensor:
    """Return the logits of a model in which each expert is the mean of its group."""
    model = dense.load(base)
    with torch.no_grad():
        for layer, groups in GROUPS.items():
            experts = model.model.layers[int(layer)].mlp.experts
            for group in groups:
                for weights in (experts.gate_up_proj, experts.down_proj):
                    weights[group] = weights[group].mean(0, keepdim=True)
        found: torch.Tensor = model(dense.tokens()).logits
    return found


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_rows_choose_the_experts_of_their_groups(tmp_path: Path, family: str) -> None:
    base, out = routed.make(family, tmp_path / "base"), tmp_path / "merged"
    api.run(described(base), out)
    model = load(out)
    module = "block_sparse_moe" if family == "mixtral" else "mlp"
    assert model.config.num_experts == 5
    # In the order of the experts that lead: 0, 3, 4, 6 and 7.
    assert model.config.expert_map[0] == [0, 0, 0, 1, 2, 1, 3, 4]
    assert torch.equal(
        dense.tensor(out, "model.layers.1.mlp.gate.weight"),
        dense.tensor(base, f"model.layers.1.{module}.gate.weight"),
    )
    assert torch.allclose(logits(model), grouped(base), atol=5e-6)


def test_a_class_of_our_own_stays_what_it_is(tmp_path: Path) -> None:
    base = dense.make("llama", tmp_path / "base")
    folders = {f"e{n}": dense.make("llama", tmp_path / f"e{n}", seed=n) for n in (1, 2)}
    experts = {name: {"model": str(folder)} for name, folder in folders.items()}
    api.run(
        {
            "base": str(base),
            "experts": experts,
            "moe": {
                "target": "routed",
                "experts": ["e1", "e2", "base"],
                "gate": {"method": "random", "std": 1.0},
            },
        },
        tmp_path / "own",
    )
    api.run(described(tmp_path / "own", [[0, 2]]), tmp_path / "merged")
    model = load(tmp_path / "merged")
    assert (model.config.num_experts, model.config.expert_map[0]) == (2, [0, 1, 0])
    whole = load(tmp_path / "own")
    with torch.no_grad():
        for layer in whole.model.layers:
            one, two = layer.mlp.experts[0], layer.mlp.experts[2]
            for left, right in zip(one.parameters(), two.parameters(), strict=True):
                mean = (left + right) / 2
                left.copy_(mean)
                right.copy_(mean)
    assert torch.allclose(logits(model), logits(whole), atol=5e-6)
    # Rows that share experts cannot be told apart by number.
    with pytest.raises(RecipeError, match="experts cannot be told apart"):
        api.plan(described(tmp_path / "merged", [[0, 1]]))


def test_what_a_mixtral_leaves_unsaid_is_said(tmp_path: Path) -> None:
    """Its defaults are not those of the class that the result has."""
    base = routed.make("mixtral", tmp_path / "base", rope_theta=1e6, rms_norm_eps=1e-5)
    config = json.loads((base / "config.json").read_text())
    for key in ("rope_theta", "rope_parameters", "rms_norm_eps", "sliding_window"):
        config.pop(key, None)
    (base / "config.json").write_text(json.dumps(config))
    out = tmp_path / "merged"
    api.run(described(base), out)
    assert dense.config(out)["sliding_window"] is None
    assert torch.allclose(logits(load(out)), grouped(base), atol=5e-6)


def test_other_families_have_no_such_class(tmp_path: Path) -> None:
    base = routed.make("granitemoe", tmp_path / "base")
    with pytest.raises(RecipeError, match="is for Mixtral, Qwen3-MoE"):
        api.plan(described(base))
