"""Vectors of texts are what transformers computes for each text alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergekit_lite.calibrate.expert_vectors import TextVectors
from mergekit_lite.cli.main import main

TEXTS = ["w5 w6 w7", "w9 w3", "w4 w4 w8 w60 w12 w33", "w21"]


def by_hand(folder: Path, sigmoid: bool) -> tuple[np.ndarray, np.ndarray]:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        network = getattr(layer, "mlp", None) or layer.block_sparse_moe
        if hasattr(network, "experts"):
            network.gate.register_forward_hook(lambda m, i, output: seen.append(output[0][-1]))
    routing, hidden = [], []
    for text in TEXTS:
        seen.clear()
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text).input_ids])
            hidden.append(model.model(ids).last_hidden_state[0, -1])
        chances = [x.sigmoid() / x.sigmoid().sum() if sigmoid else x.softmax(0) for x in seen]
        routing.append(torch.cat(chances))
    return torch.stack(routing).numpy(), torch.stack(hidden).numpy()


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe"])
def test_they_are_those_of_each_text_alone(
    saved: dict[str, Path], tmp_path: Path, family: str
) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    said = ["moe", "embed", str(saved[family]), "--data", str(data)]
    result = CliRunner().invoke(main, [*said, "-o", str(tmp_path / "vectors.safetensors")])
    assert result.exit_code == 0, result.output
    found = load_file(tmp_path / "vectors.safetensors")
    routing, hidden = by_hand(saved[family], family == "glm4_moe")
    assert routing.shape == (4, 12 if family == "mixtral" else 8)
    np.testing.assert_allclose(found["routing"], routing, atol=2e-6)
    np.testing.assert_allclose(found["hidden"], hidden, atol=2e-5)
    joined = found["joined"]
    assert joined.shape == (4, hidden.shape[1] + routing.shape[1])
    np.testing.assert_allclose(joined.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(joined.std(0), 1, atol=1e-5)


def test_a_dense_model_has_none(saved: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "texts.txt"
    data.write_text(TEXTS[0])
    said = ["moe", "embed", str(saved["llama"]), "--data", str(data)]
    result = CliRunner().invoke(main, [*said, "-o", str(tmp_path / "vectors.safetensors")])
    assert result.exit_code == 2
    assert "no routers" in result.output
    assert not (tmp_path / "vectors.safetensors").exists()


def test_similar_texts() -> None:
    routing = np.array([[1, 0], [0, 2], [3, 0]], np.float32)
    hidden = np.array([[1, 1], [1, 1], [-1, -1]], np.float32)
    vectors = TextVectors(routing, hidden)
    expected = [[1.5, 1, -0.5], [1, 1.5, -1], [-0.5, -1, 1.5]]
    np.testing.assert_allclose(vectors.similarities(0.5), expected, atol=1e-6)
    constant = TextVectors(np.ones((3, 2), np.float32), hidden).joined()
    assert not constant[:, 2:].any()
