"""A language model merged into the text tower of a model with eyes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mergekit_lite import api
from tests.checkpoints import read_weights

transformers = pytest.importorskip("transformers")

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "num_hidden_layers": 3,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "image_size": 28,
    "num_attention_heads": 2, "patch_size": 14,
}  # fmt: skip


def test_only_the_language_model_changes(tmp_path: Path) -> None:
    config = transformers.Gemma3Config(
        text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    base, math = tmp_path / "base", tmp_path / "math"
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(base)
    transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**TEXT)).save_pretrained(math)
    (base / "preprocessor_config.json").write_text('{"do_resize": true}')
    (base / "processor_config.json").write_text('{"image_seq_length": 4}')
    left, right = read_weights(base), read_weights(math)
    tower = next(n for n in left if n.endswith("layers.0.mlp.up_proj.weight"))
    tower = tower.removesuffix(".layers.0.mlp.up_proj.weight")
    recipe = {
        "base": str(base),
        "experts": {"math": {"model": str(math), "weight": 0.25, "scope": tower}},
        "steps": ["task_arithmetic"],
    }
    api.run(recipe, tmp_path / "out")
    out = read_weights(tmp_path / "out")
    assert set(out) == set(left)
    for name, value in out.items():
        if name.startswith(f"{tower}."):
            theirs = right[f"model.{name.removeprefix(tower + '.')}"]
            assert torch.equal(value, left[name] + 0.25 * (theirs - left[name])), name
        else:
            assert torch.equal(value, left[name]), name
    for file in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (base / file).read_bytes()
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert any("matched that way" in warning for warning in report["warnings"])
    model, info = transformers.Gemma3ForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert torch.isfinite(model(torch.arange(6)[None]).logits).all()
