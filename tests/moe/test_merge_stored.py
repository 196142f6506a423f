"""Merging experts in every way in which they are stored, and what stands around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from mergekit_lite import api
from mergekit_lite.calibrate.run import Settings, calibrate
from mergekit_lite.calibrate.texts import prompts
from mergekit_lite.engine.options import Options
from mergekit_lite.errors import RecipeError, ResourceError
from mergekit_lite.export.gates import with_gates
from mergekit_lite.moe.merge.make import Maker
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.explain import explain, explain_text
from mergekit_lite.sources import resolve
from tests.checkpoints import write_tokenizer
from tests.moe.dense import config, load, logits, tensor
from tests.moe.routed import make

LEFT = [0, 1, 2, 3, 5, 6, 7]
"""Of eight experts, those that are left when 4 joins 1."""


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral. Read only."""
    return make("mixtral", tmp_path_factory.mktemp("base") / "mixtral")


def joined(base: Path, **merge: Any) -> dict[str, Any]:
    """Return the recipe in which expert 4 joins expert 1."""
    said = {"method": "listed", "groups": [[1, 4]], **merge}
    return {"base": str(base), "moe": {"merge": said}}


def gpt_oss(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    torch.manual_seed(0)
    said = AutoConfig.for_model(
        "gpt_oss", vocab_size=96, hidden_size=32, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=8,
        num_experts_per_tok=2, max_position_embeddings=128, pad_token_id=0, eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(said)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_experts_stored_the_other_way_round_with_gate_and_up_by_turns(tmp_path: Path) -> None:
    root = "model.layers.0.mlp.experts"
    at = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    both = torch.stack([2 * at, 2 * at + 1], 1).reshape(-1)

    def twin(tensors: dict[str, torch.Tensor]) -> None:
        for name, order in (("gate_up_proj", both), ("gate_up_proj_bias", both)):
            tensors[f"{root}.{name}"][4] = tensors[f"{root}.{name}"][1][..., order]
        tensors[f"{root}.down_proj"][4] = tensors[f"{root}.down_proj"][1][at]
        tensors[f"{root}.down_proj_bias"][4] = tensors[f"{root}.down_proj_bias"][1]

    base, out = gpt_oss(tmp_path / "base", twin), tmp_path / "out"
    api.run(joined(base), out)
    assert config(out)["num_local_experts"] == 7
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"):
        found, kept = after[f"{root}.{name}"], before[f"{root}.{name}"][LEFT]
        torch.testing.assert_close(found, kept, rtol=1e-6, atol=0)
        assert torch.equal(found[2:], kept[2:])
    for name in ("weight", "bias"):
        name = f"model.layers.0.mlp.router.{name}"
        assert torch.equal(after[name], before[name][LEFT])
    load(out)


def test_biases_of_routers_are_means_by_frequency_too(tmp_path: Path) -> None:
    base = make("glm4_moe", tmp_path / "base")
    stats = tmp_path / "stats" / "rates"
    stats.mkdir(parents=True)
    counts = torch.tensor([[1.0, 3, 1, 1, 1, 1, 1, 1]], dtype=torch.float64)
    norms = torch.ones(8, dtype=torch.float64)
    for layer in (1, 2):
        name = f"model.layers.{layer}.mlp.gate"
        save_file(
            {f"{name}.count": counts, f"{name}.weighted_norm": norms},
            stats / f"layer-{layer:05d}.safetensors",
        )
    out = tmp_path / "out"
    api.run(joined(base, stats=str(stats.parent), router="frequency"), out)
    for layer in (1, 2):
        for rest in ("gate.weight", "gate.e_score_correction_bias"):
            name = f"model.layers.{layer}.mlp.{rest}"
            whole = tensor(base, name)
            mean = (3 * whole[1] + whole[4]) / 4
            wanted = torch.stack([whole[0], mean, *whole[[2, 3, 5, 6, 7]]])
            torch.testing.assert_close(tensor(out, name), wanted)


def test_draft_layers_are_merged_as_the_last_layer_or_left_out(tmp_path: Path) -> None:
    base = make("glm4_moe", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    draft = {
        name.replace("layers.2.", "layers.3."): value.clone()
        for name, value in tensors.items()
        if "layers.2." in name
    }
    save_file({**tensors, **draft}, base / "model.safetensors", {"format": "pt"})
    said = {**config(base), "num_nextn_predict_layers": 1}
    (base / "config.json").write_text(json.dumps(said))
    with pytest.raises(RecipeError, match="draft tokens ahead"):
        api.plan(joined(base))
    plan = api.plan(joined(base, mtp="drop"))
    assert not [job.name for job in plan.jobs if "layers.3." in job.name]
    assert plan.config["num_nextn_predict_layers"] == 0
    api.run(joined(base, mtp="last"), tmp_path / "out")
    for part in ("gate_proj", "down_proj"):
        name = f"model.layers.{{}}.mlp.experts.1.{part}.weight"
        assert torch.equal(
            tensor(tmp_path / "out", name.format(3)), tensor(tmp_path / "out", name.format(2))
        )


def test_a_base_that_is_itself_merged_in_a_stage(mixtral: Path, tmp_path: Path) -> None:
    other = make("mixtral", tmp_path / "other", seed=1)
    stage = {"base": str(mixtral), "experts": {"other": str(other)},
             "steps": [{"linear": {"weights": {"base": 0.5, "other": 0.5}}}]}  # fmt: skip
    api.run(stage, tmp_path / "between")
    api.run(joined(tmp_path / "between"), tmp_path / "two")
    recipe = {**joined(mixtral), "base": "@inner", "stages": {"inner": stage}}
    api.run(recipe, tmp_path / "one")
    assert torch.equal(logits(tmp_path / "one"), logits(tmp_path / "two"))


def test_what_was_made_is_made_once(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = api.plan(joined(mixtral))
    models = {"base": resolve(str(mixtral), relative_to=tmp_path, kind="checkpoint")}
    for _ in range(2):
        found = with_gates(plan, models, tmp_path / "out", Options(), lambda event: None)
        assert len(found["@gate"].header.tensors) == 3
        monkeypatch.setattr(Maker, "values", lambda self: iter(()))
    monkeypatch.undo()
    # Another plan finds nothing of its own there.
    other = api.plan(joined(mixtral, groups=[[4, 1]]))
    found = with_gates(other, models, tmp_path / "out", Options(), lambda event: None)
    assert "model.layers.0.block_sparse_moe.order.1" in found["@gate"].header.tensors


def test_what_is_made_first_is_in_the_estimate(mixtral: Path, tmp_path: Path) -> None:
    plan = api.plan(joined(mixtral))
    none = api.plan(joined(mixtral, align="none"))
    # Two experts of three matrices of 48 by 32, and how alike 48 neurons are.
    assert plan.moe["merged"]["working"] == 2 * 3 * 4 * 48 * 32 + 12 * 48 * 48
    assert none.moe["merged"]["working"] == 0
    orders = 3 * 4 * 48
    assert estimate(plan).disk_needed == estimate(none).disk_needed + orders
    wide = replace(plan, moe={"merged": {**plan.moe["merged"], "working": 10**12}})
    assert estimate(wide).peak_memory > 10**12
    with pytest.raises(ResourceError, match="needs"):
        estimate(wide, max_memory=10**11)


def test_a_merged_row_is_explained(mixtral: Path) -> None:
    recipe = api.load(joined(mixtral))
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    text = explain_text(explain(api.plan(recipe), recipe, name))
    assert "experts.1.w1.weight 0.5" in text
    assert "experts.4.w1.weight 0.5" in text
    assert "rows in the order `model.layers.0.block_sparse_moe.order.4`" in text


def stacked(base: Path, folder: Path) -> Path:
    """Write a Qwen3-MoE as one whose experts lie in tensors of all, as transformers has them."""
    folder.mkdir()
    tensors = load_file(base / "model.safetensors")
    for layer in range(3):
        root = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: torch.stack([tensors.pop(f"{root}.{e}.{part}_proj.weight") for e in range(8)])
            for part in ("gate", "up", "down")
        }
        tensors[f"{root}.gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], 1)
        tensors[f"{root}.down_proj"] = parts["down"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(base)))
    return folder


def test_stacked_experts_become_what_those_stored_one_by_one_become(tmp_path: Path) -> None:
    alone = make("qwen3_moe", tmp_path / "alone")
    write_tokenizer(alone, 96)
    words = [" ".join(f"w{3 + (7 * i + j * j) % 90}" for j in range(30)) for i in range(4)]
    stats = tmp_path / "stats"
    calibrate(resolve(str(alone), relative_to=tmp_path), prompts("a", words), stats,
              kinds=("rates", "merging"), settings=Settings(length=64))  # fmt: skip
    together = stacked(alone, tmp_path / "together")
    said = {"keep": 4, "method": "sub_moe", "stats": str(stats), "align": "both",
            "router": "lse", "refit_down": "ridge"}  # fmt: skip
    for base in (alone, together):
        recipe = {"base": str(base), "moe": {"merge": said}}
        api.run(recipe, tmp_path / f"{base.name}-merged")
    first, second = (tmp_path / f"{name}-merged" for name in ("alone", "together"))
    count = 0
    for layer in range(3):
        root = f"model.layers.{layer}.mlp"
        routers = [tensor(folder, f"{root}.gate.weight") for folder in (first, second)]
        assert torch.equal(*routers)
        wide, down = (tensor(second, f"{root}.experts.{p}_proj") for p in ("gate_up", "down"))
        for expert in range(4):
            gate, up = wide[expert].chunk(2)
            for part, found in (("gate", gate), ("up", up), ("down", down[expert])):
                wanted = tensor(first, f"{root}.experts.{expert}.{part}_proj.weight")
                torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
                count += 1
    assert count == 36
    name = "model.layers.0.mlp.experts.{}.down_proj.weight"
    plain = {**said, "refit_down": None}
    api.run({"base": str(alone), "moe": {"merge": plain}}, tmp_path / "plain")
    pairs = [[tensor(f, name.format(e)) for f in (first, tmp_path / "plain")] for e in range(4)]
    assert not all(torch.equal(*pair) for pair in pairs)


def test_fits_that_are_not_known_here_are_refused(tmp_path: Path) -> None:
    base = gpt_oss(tmp_path / "base", lambda tensors: None)
    with pytest.raises(RecipeError, match="without biases, stored"):
        api.plan(joined(base, stats=str(tmp_path), refit_down="ridge", weights="equal"))
