"""A routed model as a dense one: exact where experts are the same, a mean of matrices elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from mergekit_lite import api
from mergekit_lite.cli.main import main
from mergekit_lite.errors import RecipeError
from mergekit_lite.export.verify import verify
from tests.moe.dense import apart, load, tensor
from tests.moe.routed import make

COUNTS = {layer: [1.0, 0.0, 3.0, 0.0, 2.0, 9.0, 0.0, 1.0] for layer in range(3)}


def to_dense(base: Path, **dense: Any) -> dict[str, Any]:
    return {"base": str(base), "moe": {"dense": dense or "mean"}}


def statistics(folder: Path) -> str:
    (folder / "rates").mkdir(parents=True)
    for layer, counts in COUNTS.items():
        found = {f"model.layers.{layer}.mlp.gate.count": torch.tensor([counts]).double()}
        save_file(found, folder / "rates" / f"layer-{layer:05d}.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("family", "target"),
    [("llama", "mixtral"), ("qwen3", "qwen3_moe"), ("granite", "granitemoe")],
)
def test_identical_experts_are_exactly_the_dense_model(
    dense: Callable[..., Path], tmp_path: Path, family: str, target: str
) -> None:
    base = dense(family)
    copies = {"target": target, "experts": ["base"] * 4, "gate": "random", "for_training": True}
    api.run({"base": str(base), "moe": copies}, tmp_path / "routed")
    api.run(to_dense(tmp_path / "routed"), tmp_path / "dense")
    for part in ("gate", "up", "down"):
        name = f"model.layers.1.mlp.{part}_proj.weight"
        assert torch.equal(tensor(tmp_path / "dense", name), tensor(base, name))
    assert apart(tmp_path / "dense", base) < 2e-6
    assert not verify(tmp_path / "dense")


@pytest.mark.parametrize("family", ["mixtral", "granitemoe"])
def test_means_weigh_experts_by_what_chose_them(tmp_path: Path, family: str) -> None:
    base = make(family, tmp_path / "base")
    stats = statistics(tmp_path / "stats")
    api.run(to_dense(base), tmp_path / "mean")
    api.run(to_dense(base, method="frequency", stats=stats), tmp_path / "frequency")
    api.run(to_dense(base, method="top1", stats=stats), tmp_path / "top1")
    experts = load(base).model.layers[1]
    network = getattr(experts, "mlp", None) or experts.block_sparse_moe
    gate, up = (m.detach() for m in network.experts.gate_up_proj.chunk(2, dim=1))
    whole = {"gate": gate, "up": up, "down": network.experts.down_proj.detach()}
    weights = torch.tensor(COUNTS[1])
    for part, each in whole.items():
        name = f"model.layers.1.mlp.{part}_proj.weight"
        torch.testing.assert_close(tensor(tmp_path / "mean", name), each.mean(0))
        wanted = (weights[:, None, None] * each).sum(0) / weights.sum()
        torch.testing.assert_close(tensor(tmp_path / "frequency", name), wanted)
        assert torch.equal(tensor(tmp_path / "top1", name), each[5])
    load(tmp_path / "frequency")
    plan = api.plan(to_dense(base, method="top1", stats=stats))
    assert all(job.kind == "copy" for job in plan.jobs)


def test_what_has_no_dense_twin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no dense family computes what a `glm4_moe` model"):
        api.plan(to_dense(make("glm4_moe", tmp_path / "base")))
    with pytest.raises(RecipeError, match="`top1` needs `stats`"):
        api.plan(to_dense(tmp_path / "base", method="top1"))


def test_the_verb_runs_that_recipe(tmp_path: Path) -> None:
    base, stats = make("mixtral", tmp_path / "base"), statistics(tmp_path / "stats")
    api.run(to_dense(base, method="top1", stats=stats), tmp_path / "recipe")
    said = ["moe", "to-dense", str(base), "--method", "top1", "--stats", stats]
    result = CliRunner().invoke(main, [*said, "-o", str(tmp_path / "verb")])
    assert result.exit_code == 0, result.output
    written = (tmp_path / "verb" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "recipe" / "model.safetensors").read_bytes()
