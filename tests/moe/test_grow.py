"""Experts added to routed models: joined models, and newcomers that no token chooses yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from mergekit_lite import api
from mergekit_lite.errors import DataError
from mergekit_lite.export.verify import verify
from tests.moe.dense import SIZES, apart, config, load, logits, shapes, tensor
from tests.moe.test_refusals import refused

Dense = Callable[..., Path]

FAMILIES: dict[str, dict[str, Any]] = {
    "flex_olmo": {"num_experts": 4, "norm_topk_prob": True, "eos_token_id": 1, "pad_token_id": 0},
    "mixtral": {"num_local_experts": 4},
    "granitemoe": {"num_local_experts": 4},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_local_experts": 4,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
        "head_dim": 8,
    },
}
FUSED = ("input_linear", "output_linear")


def four_experts(family: str, folder: Path) -> Path:
    torch.manual_seed(3)
    sizes = {**SIZES, "num_experts_per_tok": 2, **FAMILIES[family]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" not in name and value.dim() and "inv_freq" not in name:
            torch.nn.init.normal_(value, 0.0, 0.2)
    model.save_pretrained(folder)
    return folder


def part_of(whole: Path, folder: Path, experts: list[int], **change: torch.Tensor) -> Path:
    """Write a model that has only some of the experts of another."""
    folder.mkdir()
    tensors = {}
    for name, value in load_file(whole / "model.safetensors").items():
        head, marked, tail = name.partition(".experts.")
        if marked:
            number, _, rest = tail.partition(".")
            if int(number) in experts:
                tensors[f"{head}.experts.{experts.index(int(number))}.{rest}"] = value
        elif (value.shape[:1] == (4,) and value.dim() != 3) or name.split(".")[-2] in FUSED:
            tensors[name] = value[experts].clone()
        else:
            tensors[name] = value
    tensors |= change
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = config(whole)
    counts = {"num_experts", "num_local_experts", "n_routed_experts"} & said.keys()
    said |= dict.fromkeys(counts, len(experts))
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def joined(root: Path, **moe: Any) -> dict[str, Any]:
    grow = [{"expert": name, "take": [1]} for name in ("code", "law")]
    return {
        "base": str(root / "math"),
        "experts": {name: str(root / name) for name in ("code", "law")},
        "moe": {"grow": grow, **moe},
    }


@pytest.fixture
def parts(tmp_path: Path) -> Callable[..., Path]:
    """Returns a folder with a whole model and three of its public expert and one other."""

    def make(family: str, **change: torch.Tensor) -> Path:
        whole = four_experts(family, tmp_path / "whole")
        for number, name in enumerate(("math", "code", "law"), start=1):
            own = change if name == "law" else {}
            part_of(whole, tmp_path / name, [0, number], **own)
        return tmp_path

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_model_join_to_the_whole(parts: Callable[..., Path], family: str) -> None:
    root = parts(family)
    plan = api.plan(joined(root))
    assert all(job.kind == "copy" for job in plan.jobs)
    api.run(joined(root), root / "out")
    assert shapes(root / "out") == shapes(root / "whole")
    for name in shapes(root / "whole"):
        assert torch.equal(tensor(root / "out", name), tensor(root / "whole", name))
    assert torch.equal(logits(root / "out"), logits(root / "whole"))
    assert config(root / "out")["num_local_experts"] == config(root / "out")["num_experts"] == 4
    assert verify(root / "out") == []


def test_opting_out_is_never_having_been_added(parts: Callable[..., Path]) -> None:  # 6.12
    root = parts("flex_olmo")
    api.run(joined(root), root / "all")
    kept = {"method": "listed", "experts": [0, 1, 3]}
    api.run({"base": str(root / "all"), "moe": {"prune": kept}}, root / "without")
    recipe = joined(root)
    recipe["moe"]["grow"] = [{"expert": "law", "take": 1}]
    api.run(recipe, root / "never")
    assert shapes(root / "without") == shapes(root / "never")
    for name in shapes(root / "never"):
        assert torch.equal(tensor(root / "without", name), tensor(root / "never", name))


def test_what_must_be_shared_is_compared_bit_by_bit(parts: Callable[..., Path]) -> None:  # 6.12
    root = parts("flex_olmo")
    changed = load_file(root / "law" / "model.safetensors")
    attention = "model.layers.1.self_attn.q_proj.weight"
    public = "model.layers.2.mlp.experts.0.up_proj.weight"
    for name in (attention, public):
        changed[name][3, 5] += 1e-6
    save_file(changed, root / "law" / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"2 of \d+ weights of expert `law` are not") as e:
        api.run(joined(root), root / "out")
    assert attention in str(e.value)
    assert public in str(e.value)
    assert e.value.exit_code == 3
    assert not (root / "out").exists()
    recipe = joined(root)
    recipe["moe"]["grow"] = {"experts": recipe["moe"]["grow"], "rest": "base"}
    api.run(recipe, root / "out")
    assert torch.equal(logits(root / "out"), logits(root / "whole"))


def test_an_expert_of_another_shape_is_refused(parts: Callable[..., Path]) -> None:
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    root = parts("flex_olmo", **{name: torch.zeros(40, 32)})
    assert "40x32" in refused(joined(root))


def test_newcomers_without_a_chance_change_nothing(
    parts: Callable[..., Path], dense: Dense
) -> None:  # 4.13
    """Shows 4.13."""
    root = parts("glm4_moe")
    recipe = {
        "base": str(root / "whole"),
        "experts": {"law": str(dense("llama"))},
        "moe": {"grow": ["law", {"expert": "base", "take": [2, 0]}]},
    }
    api.run(recipe, root / "out")
    assert apart(root / "whole", root / "out") == 0.0
    block = "model.layers.1.mlp"
    bias = tensor(root / "out", f"{block}.gate.e_score_correction_bias")
    assert bias[4:].tolist() == [-1e4] * 3
    rows = tensor(root / "out", f"{block}.gate.weight")
    assert torch.equal(rows[5], rows[2])
    assert not rows[4].any()
    # The dense layer is narrower than the experts: what is beyond it is zero.
    up = tensor(root / "out", f"{block}.experts.4.up_proj.weight")
    assert torch.equal(up[:48], tensor(dense("llama"), "model.layers.1.mlp.up_proj.weight"))
    assert not up[48:].any()
    down = tensor(root / "out", f"{block}.experts.4.down_proj.weight")
    assert torch.equal(down[:, :48], tensor(dense("llama"), "model.layers.1.mlp.down_proj.weight"))
    mask = json.loads((root / "out" / "freeze_mask.json").read_text())
    assert f"{block}.experts.3.up_proj.weight" in mask["frozen"]
    assert f"{block}.experts.4.up_proj.weight" not in mask["frozen"]
    assert mask["frozen_experts"][f"{block}.gate.weight"] == 4
    # With the bias of its fellows, a newcomer is chosen and heard.
    model = load(root / "out")
    for layer in (1, 2):
        model.model.layers[layer].mlp.gate.e_score_correction_bias[4:] = 1.0
    from tests.moe.dense import tokens

    with torch.no_grad():
        heard = model(tokens()).logits
    assert float((heard - logits(root / "whole")).abs().max()) > 1e-2


def test_what_cannot_be_added_is_refused(parts: Callable[..., Path], dense: Dense) -> None:
    root = parts("mixtral")
    base, llama = str(root / "whole"), str(dense("llama"))
    text = refused({"base": base, "experts": {"law": llama}, "moe": {"grow": ["law"]}})
    assert "nothing keeps tokens from `law`" in text
    text = refused({"base": llama, "experts": {"law": base}, "moe": {"grow": ["law"]}})
    assert "no routed experts" in text
    code = str(root / "code")
    text = refused({"base": base, "experts": {"code": code}, "moe": {"grow": ["code"]}})
    assert "take: [1]" in text
    grow: list[Any] = [{"expert": "code", "take": [1, 2]}]
    recipe = {"base": base, "experts": {"code": code}, "moe": {"grow": grow}}
    assert "has 2 experts (0-1), asked 2" in refused(recipe)
    recipe["moe"] = {"grow": [{"expert": "code", "take": 1}], "experts_per_token": 9}
    assert "cannot pass 9 of 5 experts" in refused(recipe)
    recipe["moe"] = {"grow": [], "gate": "random"}
    recipe["steps"] = ["linear"]
    text = refused(recipe)
    assert "must list the experts" in text
    assert "`moe.grow` and `moe.gate`" in text
    assert "`moe.grow` and `steps`" in text
