"""What is written computes the same in llama.cpp, and where it does not, it was told (V17)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from mergekit_lite import api
from mergekit_lite.moe.compat import check_model
from mergekit_lite.sources import resolve
from tests.moe.dense import SIZES
from tests.moe.test_carve import carved
from tests.moe.test_compat import changed
from tests.moe.test_identity import copies
from tests.runtime.running import ROUNDING, apart, run, verdict

pytestmark = pytest.mark.runtime

Dense = Callable[..., Path]
UNGROUPED = {"num_key_value_heads": 4}

PAIRS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("llama", "mixtral", {}, {}),
    ("llama", "mixtral", {}, {"experts_per_token": 4}),
    ("llama", "mixtral", {}, {"experts": ["base", "other", "base"]}),
    ("phi3", "mixtral", {}, {}),
    ("qwen3", "qwen3_moe", {}, {}),
    ("llama", "glm4_moe", {}, {}),
    ("qwen2", "glm4_moe", {}, {}),
    ("llama", "glm4_moe", {}, {"shared": {"expert": "other", "residual_scale": 0.5}}),
    ("llama", "granitemoe", {}, {}),
    ("granite", "granitemoe", {}, {}),
    ("llama", "granitemoeshared", {}, {"shared": {"expert": "other", "residual_scale": 0.5}}),
    ("qwen3", "dots1", UNGROUPED, {}),
    ("ernie4_5", "ernie4_5_moe", {}, {"shared": {"expert": "other", "residual_scale": 0.5}}),
    ("hunyuan_v1_dense", "hunyuan_v1_moe", {}, {}),
    ("deepseek_v2", "deepseek_v2", {}, {}),
    ("deepseek_v3", "deepseek_v3", {}, {}),
]


def told(folder: Path) -> str:
    return check_model(resolve(str(folder), relative_to=folder)).verdict("llama.cpp")


def mixed(dense: Dense, donor: str, target: str, own: dict[str, Any], **moe: Any) -> dict[str, Any]:
    """Return a recipe of two experts that differ, by turns."""
    recipe = copies(dense(donor, 3, **own), target)
    recipe["experts"] = {"other": str(dense(donor, 4, **own))}
    recipe["moe"] |= {"experts": ["base", "other"] * 2, **moe}  # type: ignore[operator]
    return recipe


@pytest.mark.parametrize(("donor", "target", "own", "moe"), PAIRS)
def test_experts_that_differ(
    dense: Dense,
    tmp_path: Path,
    donor: str,
    target: str,
    own: dict[str, Any],
    moe: dict[str, Any],
) -> None:
    api.run(mixed(dense, donor, target, own, **moe), tmp_path / "routed")
    assert apart(tmp_path / "routed") < ROUNDING
    assert told(tmp_path / "routed") == "same"


@pytest.mark.parametrize(
    ("donor", "target"),
    [("llama", "mixtral"), ("qwen3", "qwen3_moe"), ("qwen2", "glm4_moe"), ("llama", "granitemoe")],
)
def test_copies_compute_what_the_dense_model_does(
    dense: Dense, tmp_path: Path, donor: str, target: str
) -> None:
    api.run(copies(dense(donor), target), tmp_path / "routed")
    assert apart(tmp_path / "routed", dense(donor)) < ROUNDING


@pytest.mark.parametrize(
    ("donor", "target", "shared"),
    [("llama", "mixtral", 0), ("llama", "glm4_moe", 2), ("qwen2", "qwen2_moe", 1)],
)
def test_slices_of_a_dense_model(
    dense: Dense, tmp_path: Path, donor: str, target: str, shared: int
) -> None:
    base = dense(donor, 3)
    api.run(carved(base, target, shared=shared), tmp_path / "all")
    assert apart(tmp_path / "all", base) < ROUNDING
    if target != "qwen2_moe":
        some = carved(base, target, shared=shared, experts_per_token=2, router="param")
        api.run(some, tmp_path / "some")
        assert apart(tmp_path / "some") < ROUNDING


def test_a_bias_switches_an_expert_off(dense: Dense, tmp_path: Path) -> None:
    # With larger logits, scores of all that a bias leaves may be so small that llama.cpp no longer
    # divides by their sum but by 6.1e-5.
    gate = {"method": "random", "std": 0.3}
    api.run(mixed(dense, "llama", "glm4_moe", {}, gate=gate), tmp_path / "routed")
    out = changed(tmp_path / "routed", tmp_path / "off", routed_scaling_factor=1.7)
    tensors = load_file(out / "model.safetensors")
    for name, value in tensors.items():
        if "e_score_correction_bias" in name:
            torch.nn.init.normal_(value, 0.0, 0.1)
            value[1] = -1e4
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    before = run(out)
    assert apart(out) < ROUNDING
    for name, value in tensors.items():
        if "experts.1." in name:
            torch.nn.init.normal_(value, 0.0, 0.3)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    assert torch.equal(run(out), before)


TRAPS: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
    ("qwen2", "qwen2_moe", {}, {}, "differs"),
    ("qwen2", "qwen2_moe", {}, {"num_experts_per_tok": 4}, "same"),
    ("qwen2", "qwen2_moe", {}, {"norm_topk_prob": False}, "same"),
    ("qwen3", "qwen3_moe", {}, {"norm_topk_prob": False}, "differs"),
    ("llama", "glm4_moe", {}, {"norm_topk_prob": False}, "same"),
    ("deepseek_v3", "deepseek_v3", {}, {"norm_topk_prob": False}, "same"),
    (
        "deepseek_v2", "deepseek_v2", {},
        {"num_experts_per_tok": 2, "norm_topk_prob": False}, "same",
    ),
    (
        "deepseek_v2", "deepseek_v2", {},
        {"num_experts_per_tok": 2, "norm_topk_prob": True}, "differs",
    ),
    ("qwen3", "dots1", {}, {}, "fails"),
]  # fmt: skip


@pytest.mark.parametrize(("donor", "target", "own", "entries", "expected"), TRAPS)
def test_what_is_told_is_what_happens(
    dense: Dense,
    tmp_path: Path,
    donor: str,
    target: str,
    own: dict[str, Any],
    entries: dict[str, Any],
    expected: str,
) -> None:
    api.run(mixed(dense, donor, target, own), tmp_path / "routed")
    out = changed(tmp_path / "routed", tmp_path / "changed", **entries)
    assert verdict(out) == told(out) == expected


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"norm_topk_prob": False, **UNGROUPED}, "same"),
        ({"norm_topk_prob": True, **UNGROUPED}, "differs"),
        ({"norm_topk_prob": False}, "fails"),
    ],
)
def test_olmoe_has_its_own_two_traps(
    tmp_path: Path, entries: dict[str, Any], expected: str
) -> None:
    torch.manual_seed(0)
    own = {"num_experts": 8, "num_experts_per_tok": 2, "pad_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model("olmoe", **{**SIZES, **own, **entries})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "olmoe")
    assert verdict(tmp_path / "olmoe") == told(tmp_path / "olmoe") == expected


def test_a_gate_of_zeros_is_not_a_number(dense: Dense, tmp_path: Path) -> None:
    recipe = mixed(dense, "qwen2", "qwen2_moe", {}, experts_per_token=4)
    api.run(recipe, tmp_path / "routed")
    assert verdict(tmp_path / "routed") == told(tmp_path / "routed") == "same"
    file = tmp_path / "routed" / "model.safetensors"
    tensors = load_file(file)
    for name, value in tensors.items():
        if "shared_expert_gate" in name:
            value.zero_()
    save_file(tensors, file, {"format": "pt"})
    assert run(tmp_path / "routed").isnan().all()
    assert told(tmp_path / "routed") == "fails"
