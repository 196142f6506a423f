"""A routed model of identical experts computes what the dense one does, in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mergekit_lite import api
from mergekit_lite.moe.families import FAMILIES
from tests.moe.dense import apart, config, load, logits, make, shapes, tensor

Dense = Callable[..., Path]

PAIRS = [
    ("llama", "mixtral"),
    ("mistral", "mixtral"),
    ("mistral", "glm4_moe"),
    ("mistral", "granitemoe"),
    ("mistral", "granitemoeshared"),
    ("phi3", "mixtral"),
    ("qwen2", "qwen2_moe"),
    ("qwen2", "glm4_moe"),
    ("qwen3", "qwen3_moe"),
    ("qwen3", "dots1"),
    ("qwen3", "glm4_moe"),
    ("llama", "granitemoe"),
    ("llama", "granitemoeshared"),
    ("phi3", "granitemoe"),
    ("phi3", "granitemoeshared"),
    ("granite", "granitemoe"),
    ("granite", "granitemoeshared"),
    ("llama", "glm4_moe"),
    ("phi3", "glm4_moe"),
    ("olmo2", "flex_olmo"),
    ("ernie4_5", "ernie4_5_moe"),
    ("hunyuan_v1_dense", "hunyuan_v1_moe"),
    ("deepseek_v2", "deepseek_v2"),
    ("deepseek_v3", "deepseek_v3"),
]


def copies(base: Path, target: str, **moe: object) -> dict[str, object]:
    """Return a recipe of four copies of one model."""
    per_token = 4 if target == "deepseek_v2" else 2
    return {
        "base": str(base),
        "moe": {
            "target": target,
            "experts": ["base"] * 4,
            "experts_per_token": per_token,
            "gate": {"method": "random", "std": 1.0},
            "for_training": True,
            **moe,
        },
    }


@pytest.mark.parametrize(("donor", "target"), PAIRS)
def test_identical_experts_are_the_dense_model(
    dense: Dense, tmp_path: Path, donor: str, target: str
) -> None:
    """Shows V1, V2, F1 and F5."""
    base, out = dense(donor), tmp_path / "routed"
    api.run(copies(base, target), out)
    assert apart(base, out) < 5e-6
    # Names, shapes and bytes are those that transformers itself writes to disk.
    load(out).save_pretrained(tmp_path / "again")
    assert stored(out) == stored(tmp_path / "again")
    assert config(out)["num_experts"] == config(out)["num_local_experts"] == 4


def test_every_pair_that_can_be_assembled_is_tried() -> None:
    own_code = FAMILIES["routed"]  # whose identity is in test_routed_code.py
    known = {(donor, f.name) for f in FAMILIES.values() if f is not own_code for donor in f.donors}
    assert known == set(PAIRS)


def test_the_gate_of_a_shared_expert_is_not_zero(dense: Dense, tmp_path: Path) -> None:
    api.run(copies(dense("qwen2"), "qwen2_moe"), tmp_path / "routed")
    gate = load(tmp_path / "routed").model.layers[1].mlp.shared_expert_gate.weight
    assert 0 < gate.abs().max() < 2**-27  # F24a
    assert (gate != 0).all()
    assert torch.sigmoid(gate.sum()) == 0.5


@pytest.mark.parametrize(
    ("donor", "target"),
    [("llama", "mixtral"), ("qwen2", "qwen2_moe"), ("qwen3", "qwen3_moe"), ("llama", "glm4_moe"),
     ("llama", "granitemoeshared"), ("olmo2", "flex_olmo")],
)  # fmt: skip
def test_in_half_precision_the_same_token_wins(tmp_path: Path, donor: str, target: str) -> None:
    base = make(donor, tmp_path / "base", dtype="bfloat16")
    api.run(copies(base, target), tmp_path / "routed")
    before = logits(base, torch.bfloat16)
    after = logits(tmp_path / "routed", torch.bfloat16)
    # Weights that add up to 1 are rounded too: tokens nearly as likely may change places.
    ranked = before.float().topk(2, dim=-1).values
    clear = ranked[..., 0] - ranked[..., 1] > 0.1
    assert clear.float().mean() > 0.5
    assert torch.equal(before.argmax(-1)[clear], after.argmax(-1)[clear])


def stored(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Return name -> dtype, shape and bytes of every tensor of a model on disk."""
    found = {name: tensor(folder, name) for name in shapes(folder)}
    return {
        name: (value.dtype, tuple(value.shape), value.numpy().tobytes())
        for name, value in found.items()
    }


def test_auto_takes_the_family_that_most_loaders_know(dense: Dense) -> None:
    for donor, target in (
        ("llama", "mixtral"), ("qwen2", "qwen2_moe"), ("qwen3", "qwen3_moe"),
        ("granite", "granitemoe"), ("olmo2", "flex_olmo"), ("ernie4_5", "ernie4_5_moe"),
        ("hunyuan_v1_dense", "hunyuan_v1_moe"), ("deepseek_v3", "deepseek_v3"),
    ):  # fmt: skip
        assert api.plan(copies(dense(donor), "auto")).moe["target"] == target
    shared = copies(dense("llama"), "auto", shared="base")
    assert api.plan(shared).moe["target"] == "glm4_moe"
