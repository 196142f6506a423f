"""Pruned models compute what the whole ones would if they never chose the experts left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite import api
from mergekit_lite.errors import RecipeError
from mergekit_lite.export.verify import verify
from tests.moe.dense import config, load, logits, tensor, tokens
from tests.moe.routed import FAMILIES, make, masked_logits

Routed = Callable[[str], Path]
KEPT = {0: (1, 2, 5, 7), 1: (0, 3, 4, 6), 2: (2, 3, 4, 7)}


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Routed:
    """Returns a tiny routed model of a family, made once. Read only."""
    root = tmp_path_factory.mktemp("routed")

    def get(family: str) -> Path:
        if not (root / family).exists():
            make(family, root / family)
        return root / family

    return get


def listed(base: Path, layers: int = 3, **prune: Any) -> dict[str, Any]:
    first = 3 - layers
    experts = {str(layer): list(KEPT[layer]) for layer in range(first, 3)}
    return {
        "base": str(base),
        "moe": {"prune": {"method": "listed", "experts": experts, **prune}},
    }


def problems(recipe: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        api.plan(recipe)
    return "\n".join(f"{p.where}: {p.what} [{p.hint}]" for p in caught.value.problems)


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_is_the_model_that_cannot_choose_what_is_gone(
    routed: Routed, tmp_path: Path, family: str
) -> None:
    """Shows V10."""
    base, out = routed(family), tmp_path / "pruned"
    layers = 2 if family == "glm4_moe" else 3
    api.run(listed(base, layers), out)
    expected = masked_logits(base, KEPT)
    assert float((logits(out) - expected).abs().max()) < 5e-5
    assert float((logits(base) - expected).abs().max()) > 1e-2  # the reference tells them apart
    assert all(job.kind == "copy" for job in api.plan(listed(base, layers)).jobs)
    said = config(out)
    assert said["num_experts"] == said["num_local_experts"] == 4
    assert said.get("n_routed_experts", 4) == 4
    assert not verify(out)


def test_survivors_are_the_same_bytes_under_new_numbers(routed: Routed, tmp_path: Path) -> None:
    base, out = routed("qwen3_moe"), tmp_path / "pruned"
    api.run(listed(base), out)
    for layer, kept in KEPT.items():
        root = f"model.layers.{layer}.mlp"
        for new, old in enumerate(kept):
            for part in ("gate_proj", "up_proj", "down_proj"):
                assert torch.equal(
                    tensor(out, f"{root}.experts.{new}.{part}.weight"),
                    tensor(base, f"{root}.experts.{old}.{part}.weight"),
                )
        rows = tensor(base, f"{root}.gate.weight")[list(kept)]
        assert torch.equal(tensor(out, f"{root}.gate.weight"), rows)
    assert "Of the 8 experts of each routed layer 4 are left" in (out / "README.md").read_text()
    manifest = json.loads((out / "moe_manifest.json").read_text())
    assert manifest["modules"]["model.layers.1.mlp"]["kept"] == [0, 3, 4, 6]


def test_keeping_all_is_the_model(routed: Routed, tmp_path: Path) -> None:
    for family in ("mixtral", "granitemoe"):
        recipe = {"base": str(routed(family)), "moe": {"prune": {"keep": 8, "method": "random"}}}
        api.run(recipe, tmp_path / family)
        assert torch.equal(logits(tmp_path / family), logits(routed(family)))


def test_a_bias_that_disables_experts_does_what_leaving_them_out_does(
    routed: Routed, tmp_path: Path
) -> None:
    """Shows 4.7."""
    base = routed("glm4_moe")
    api.run(listed(base, 2), tmp_path / "pruned")
    model = load(base)
    for layer in (1, 2):
        gone = [e for e in range(8) if e not in KEPT[layer]]
        model.model.layers[layer].mlp.gate.e_score_correction_bias[gone] = -1e4
    with torch.no_grad():
        disabled = model(tokens()).logits
    assert float((disabled - logits(tmp_path / "pruned")).abs().max()) < 1e-5


def test_codes_and_scales_move_as_they_are(routed: Routed, tmp_path: Path) -> None:
    """V10: nothing is dequantised, and the config goes on to say how it is quantised."""
    base, out = tmp_path / "fp8", tmp_path / "pruned"
    base.mkdir()
    tensors = load_file(routed("qwen3_moe") / "model.safetensors")
    for name in [name for name in tensors if ".experts." in name]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.rand(1, 1)
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    said = config(routed("qwen3_moe"))
    said["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (base / "config.json").write_text(json.dumps(said))
    api.run(listed(base), out)
    after = load_file(out / "model.safetensors")
    assert config(out)["quantization_config"] == said["quantization_config"]
    for new, old in enumerate(KEPT[2]):
        for rest in ("down_proj.weight", "down_proj.weight_scale_inv"):
            found = after[f"model.layers.2.mlp.experts.{new}.{rest}"]
            wanted = tensors[f"model.layers.2.mlp.experts.{old}.{rest}"]
            assert found.dtype == wanted.dtype
            assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
    assert not verify(out)


def test_groups_of_experts_lose_as_many_each(tmp_path: Path) -> None:
    base = make("glm4_moe", tmp_path / "base", n_group=2, topk_group=1)
    text = problems({"base": str(base), "moe": {"prune": {"keep": 5, "method": "random"}}})
    assert "choose among 2 groups" in text  # F14
    assert "keep 4 or 6" in text
    out = tmp_path / "pruned"
    api.run({"base": str(base), "moe": {"prune": {"keep": 4, "method": "random"}}}, out)
    for module in json.loads((out / "moe_manifest.json").read_text())["modules"].values():
        assert [expert // 4 for expert in module["kept"]] == [0, 0, 1, 1]
        for group in (0, 4):
            ranked = sorted(range(group, group + 4), key=lambda e: -module["scores"][e])
            assert set(ranked[:2]) < set(module["kept"])
    assert load(out).config.n_group == 2
    text = problems({"base": str(base), "moe": {"prune": {"keep": 2, "method": "random"}}})
    assert "keep at least 4" in text


def test_no_more_experts_a_token_than_there_are(routed: Routed) -> None:
    base = str(routed("mixtral"))
    plan = api.plan({"base": base, "moe": {"prune": {"keep": 1, "method": "random"}}})
    assert plan.config["num_experts_per_tok"] == 1
    assert any("passed 2 experts" in text for text in plan.warnings)
    recipe = {
        "base": base,
        "moe": {"experts_per_token": 3, "prune": {"keep": 2, "method": "random"}},
    }
    assert "cannot pass 3 of 2 experts" in problems(recipe)  # F20


def test_draft_layers_are_told_of(routed: Routed, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    tensors = load_file(routed("glm4_moe") / "model.safetensors")
    draft = {
        name.replace("layers.2.", "layers.3."): value.clone()
        for name, value in tensors.items()
        if "layers.2." in name
    }
    draft["model.layers.3.eh_proj.weight"] = torch.zeros(32, 64)
    save_file({**tensors, **draft}, base / "model.safetensors", {"format": "pt"})
    said = {**config(routed("glm4_moe")), "num_nextn_predict_layers": 1}
    (base / "config.json").write_text(json.dumps(said))
    text = problems(listed(base, 2))
    assert "draft tokens ahead" in text  # F16
    assert "`mtp: drop`" in text
    plan = api.plan(listed(base, 2, mtp="drop"))
    assert not [job.name for job in plan.jobs if "layers.3." in job.name]
    assert plan.config["num_nextn_predict_layers"] == 0
    plan = api.plan(listed(base, 2, mtp="last"))
    experts = {job.name: job.reads[0].name for job in plan.jobs if ".3.mlp.experts" in job.name}
    assert len(experts) == 12
    assert experts["model.layers.3.mlp.experts.0.up_proj.weight"].endswith(".2.up_proj.weight")
    assert any("layers.3.eh_proj" in job.name for job in plan.jobs)


def test_what_cannot_be_pruned_is_refused(routed: Routed, dense: Any) -> None:
    base = str(routed("mixtral"))
    assert "no routed experts" in problems(
        {"base": str(dense("llama")), "moe": {"prune": {"keep": 2, "method": "random"}}}
    )
    uneven = {"method": "listed", "experts": {"0": [0, 1], "1": [2], "2": [0, 1]}}
    text = problems({"base": base, "moe": {"prune": uneven}})
    assert "not every layer keeps 2 experts" in text
    assert "-1e4" in text
    text = problems(
        {
            "base": base,
            "steps": ["linear"],
            "moe": {"prune": {"keep": 3.5, "method": "reep"}, "gate": "random"},
        }
    )
    assert "did you mean `reap`" in text
    assert "`moe.prune` and `steps` do not go together" in text
    assert "`moe.prune` and `moe.gate` do not go together" in text
    assert "needs `stats`" in problems({"base": base, "moe": {"prune": {"keep": 4}}})
    text = problems({"base": base, "moe": {"prune": {"keep": 9, "method": "random"}}})
    assert "9 experts cannot stay of 8" in text
    text = problems({"base": base, "moe": {"prune": {"keep": 1.5, "method": "random"}}})
    assert "write `keep: 4`" in text
