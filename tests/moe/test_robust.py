"""Runs that are interrupted, other vocabularies and heads, and inputs in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from mergekit_lite.export import gates
from tests.moe.dense import apart, config, load, make, tensor

Dense = Callable[..., Path]


@pytest.fixture
def recipe(dense: Dense) -> dict[str, Any]:
    """Two experts of a Llama in several shards."""
    return {
        "base": str(dense("llama")),
        "experts": {"a": str(dense("llama", 1)), "b": str(dense("llama", 2))},
        "moe": {"target": "mixtral", "gate": "random"},
        "output": {"shard_size": "40KB"},
    }


def test_gates_are_not_made_twice(
    tmp_path: Path, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit_lite.export import merge

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    made = gates.gate_folder(tmp_path / "routed") / "gates.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(merge, "finish", lambda *a, **k: interrupted())
        with pytest.raises(KeyboardInterrupt):
            api.run(recipe, tmp_path / "routed")
    stamp = made.stat().st_mtime_ns
    seen: list[int] = []
    finish = merge.finish

    def watched(*args: Any, **options: Any) -> None:
        seen.append(made.stat().st_mtime_ns)
        finish(*args, **options)

    monkeypatch.setattr(merge, "finish", watched)
    report = api.run(recipe, tmp_path / "routed")
    assert seen == [stamp]
    assert report.resumed_shards > 0
    assert not made.exists()
    load(tmp_path / "routed")
    monkeypatch.undo()
    api.run(recipe, tmp_path / "whole")
    for file in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "routed" / file.name).read_bytes()


def test_gates_of_another_plan_are_made_anew(tmp_path: Path, recipe: dict[str, Any]) -> None:
    folder = gates.gate_folder(tmp_path / "routed")
    folder.mkdir()
    (folder / "gates.safetensors").write_bytes(b"something else")
    api.run(recipe, tmp_path / "routed")
    load(tmp_path / "routed")


def test_a_head_of_its_own(tmp_path: Path) -> None:
    base = make("llama", tmp_path / "base", tie_word_embeddings=True)
    copies = {"experts": ["base"] * 2, "for_training": True}
    api.run({"base": str(base), "moe": copies}, tmp_path / "tied")
    assert config(tmp_path / "tied")["tie_word_embeddings"] is True
    assert apart(base, tmp_path / "tied") < 5e-6
    api.run({"base": str(base), "moe": copies, "head": "untie"}, tmp_path / "untied")
    assert config(tmp_path / "untied")["tie_word_embeddings"] is False
    assert apart(base, tmp_path / "untied") < 5e-6


def test_an_expert_of_another_vocabulary(dense: Dense, tmp_path: Path) -> None:
    # F10: embeddings come from the base, so more rows of an expert's are no matter.
    other = make("llama", tmp_path / "other", seed=4, vocab_size=104)
    recipe = {
        "base": str(dense("llama")),
        "experts": {"a": str(dense("llama", 1)), "b": str(other)},
        "moe": {"target": "mixtral", "gate": "random"},
    }
    api.run(recipe, tmp_path / "routed")
    assert config(tmp_path / "routed")["vocab_size"] == 96
    name = "model.layers.0.mlp.up_proj.weight"
    found = tensor(tmp_path / "routed", "model.layers.0.block_sparse_moe.experts.1.w3.weight")
    assert torch.equal(found, tensor(other, name))


def test_sixteen_bits_are_copied_as_they_are(tmp_path: Path) -> None:
    base = make("phi3", tmp_path / "base", dtype="bfloat16")
    recipe = {"base": str(base), "moe": {"experts": ["base"] * 2, "for_training": True}}
    plan = api.plan(recipe)
    # Even what Phi-3 stores fused moves as bytes; only routers are made in fp32 and rounded.
    assert {job.kind for job in plan.jobs if "block_sparse_moe.gate" not in job.name} == {"copy"}
    api.run(recipe, tmp_path / "routed")
    up = tensor(tmp_path / "routed", "model.layers.1.block_sparse_moe.experts.1.w3.weight")
    assert torch.equal(up, tensor(base, "model.layers.1.mlp.gate_up_proj.weight")[48:])


def test_quantised_experts_are_read_as_floats(dense: Dense, tmp_path: Path) -> None:  # F13
    from tests.quantised import fp8_copy

    coded, values = fp8_copy(dense("llama", 1), tmp_path / "fp8")
    recipe = {
        "base": str(dense("llama")),
        "experts": {"a": str(coded), "b": str(dense("llama", 2))},
        "moe": {"target": "granitemoe", "gate": "random"},
    }
    api.run(recipe, tmp_path / "routed")
    load(tmp_path / "routed")
    found = tensor(tmp_path / "routed", "model.layers.2.block_sparse_moe.output_linear.weight")
    wanted = torch.from_numpy(values["model.layers.2.mlp.down_proj.weight"])
    assert torch.equal(found[0], wanted)
    assert torch.equal(found[1], tensor(dense("llama", 2), "model.layers.2.mlp.down_proj.weight"))


def test_what_is_odd_about_experts_is_said(dense: Dense, tmp_path: Path) -> None:
    other = make("llama", tmp_path / "other", seed=3, eos_token_id=7)
    noisy = {"expert": "b", "noise": {"scale": 0.02, "relative": False}}
    recipe = {
        "base": str(dense("llama")),
        "experts": {"a": str(other), "b": str(dense("llama", 2))},
        "moe": {"target": "mixtral", "gate": "random", "experts": ["a", noisy]},
    }
    warnings = "\n".join(api.plan(recipe).warnings)
    assert "expert `a` ends texts with token 7, the base with 2" in warnings  # F12
    assert "noise of 0.02 is absolute" in warnings  # F17
