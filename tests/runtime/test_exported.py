"""What `export --to gguf` writes computes the same in llama.cpp, and reads texts the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mergekit_lite import api
from mergekit_lite.export.gguf.write import write_gguf
from mergekit_lite.sources import resolve
from tests.moe.dense import logits, make, tokens
from tests.moe.test_identity import copies

pytestmark = pytest.mark.runtime

FAR = {
    "F16": 0.01,
    "BF16": 0.05,
    "Q8_0": 0.05,
    "Q5_1": 0.2,
    "Q5_0": 0.2,
    "Q4_1": 0.35,
    "Q4_0": 0.35,
}
"""Most that logits of these small models may be off, of their size."""


def apart(folder: Path, kind: str) -> float:
    import llama_cpp

    file = folder.parent / f"{folder.name}-{kind}.gguf"
    write_gguf(str(folder), kind, file)
    model = llama_cpp.Llama(
        model_path=str(file), n_ctx=64, n_threads=1, logits_all=True, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    found = []
    for row in tokens().tolist():
        model.reset()
        model.eval(row)
        found.append(np.array(model.scores[: len(row)]))
    model.close()
    wanted = logits(folder)
    return float((torch.from_numpy(np.stack(found)) - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", FAR)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_dense_models(tmp_path: Path, family: str, kind: str) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.08}
    assert apart(make(family, tmp_path / family, **sizes), kind) < FAR[kind]


def test_scaled_positions(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, "rope_theta": 500000.0,
    }  # fmt: skip
    assert apart(make("llama", tmp_path / "llama3", rope_parameters=rope), "F16") < 0.01


@pytest.mark.parametrize(("donor", "target"), [("llama", "mixtral"), ("qwen3", "qwen3_moe")])
def test_routed_models(tmp_path: Path, donor: str, target: str) -> None:
    base = make(donor, tmp_path / "base", hidden_size=64, intermediate_size=128)
    api.run(copies(base, target), tmp_path / "routed")
    assert apart(tmp_path / "routed", "F16") < 0.01


def test_texts_are_read_as_by_the_tokenizer(tmp_path: Path) -> None:
    import llama_cpp
    from transformers import AutoTokenizer

    write_gguf("zoo:smol", "Q8_0", tmp_path / "smol.gguf")
    model = llama_cpp.Llama(
        model_path=str(tmp_path / "smol.gguf"), n_ctx=64, n_threads=1, verbose=False
    )
    known = AutoTokenizer.from_pretrained(resolve("zoo:smol", relative_to=tmp_path).root)
    for text in ("It's 1234 times.\n\n  Grüße!", "def f(x):\n\treturn x**2", "日本語 <|im_end|>"):
        wanted = known(text, add_special_tokens=False)["input_ids"]
        assert model.tokenize(text.encode(), add_bos=False, special=True) == wanted
    said = model("The capital of France is", max_tokens=2, temperature=0)
    assert "Paris" in said["choices"][0]["text"]
    model.close()
