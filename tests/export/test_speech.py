"""Whisper by plain names: encoder, decoder and all that goes with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mergekit_lite import api
from tests.checkpoints import read_weights

transformers = pytest.importorskip("transformers")


def whisper(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(
        vocab_size=64, num_mel_bins=8, encoder_layers=2, decoder_layers=2, d_model=16,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_source_positions=16, max_target_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"feature_size": 8}')
    return folder


def loaded(folder: Path) -> object:
    model, info = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.ones(1, 3, dtype=torch.long)
    logits = model(torch.randn(1, 8, 32), decoder_input_ids=tokens).logits
    assert torch.isfinite(logits).all()
    return model


def test_two_whispers(tmp_path: Path) -> None:
    base, other = whisper(tmp_path / "base", 1), whisper(tmp_path / "other", 2)
    steps = [{"linear": {"weights": {"base": 0.5, "other": 0.5}}}]
    api.run({"base": str(base), "experts": {"other": str(other)}, "steps": steps}, tmp_path / "out")
    left, right, out = (read_weights(folder) for folder in (base, other, tmp_path / "out"))
    assert set(out) == set(left)
    name = "model.decoder.layers.1.encoder_attn.q_proj.weight"
    assert torch.equal(out[name], (left[name] + right[name]) / 2)
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    loaded(tmp_path / "out")


def test_a_deeper_decoder(tmp_path: Path) -> None:
    base = whisper(tmp_path / "base", 1)
    slices = [{"take": "base", "layers": "0-1,1", "stack": "decoder.layers"}]
    api.run({"base": str(base), "slices": slices}, tmp_path / "out")
    config = loaded(tmp_path / "out").config  # type: ignore[attr-defined]
    assert (config.encoder_layers, config.decoder_layers) == (2, 3)
