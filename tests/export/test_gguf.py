"""GGUF files as llama.cpp's own reader sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from mergekit_lite import api
from mergekit_lite.errors import DataError, RecipeError, ResourceError
from mergekit_lite.export.gguf.layout import TYPES
from mergekit_lite.export.gguf.tokens import TokenizerError, vocabulary
from mergekit_lite.export.gguf.write import write_gguf
from tests.checkpoints import read_weights, write_json, write_weights
from tests.moe.dense import make
from tests.moe.test_identity import copies
from tests.tokenizer.tokenizers import bpe

Q, BLOCK_Q = "model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight"
UP, BLOCK_UP = "model.layers.1.mlp.up_proj.weight", "blk.1.ffn_up.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "llama"
    return make("llama", folder, hidden_size=256, intermediate_size=512, num_hidden_layers=2)


def stored(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def said(file: Path, key: str) -> Any:
    return gguf.GGUFReader(file).fields[key].contents()


def by_neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return rows of which those that are turned together stand side by side."""
    size = len(weight) // heads
    order = [h * size + half * size // 2 + i for h in range(heads) for i in range(size // 2)
             for half in (0, 1)]  # fmt: skip
    return weight[order]


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_are_those_of_the_checkpoint(llama: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "model.gguf"
    done = write_gguf(str(llama), kind, file)
    assert done.nbytes == file.stat().st_size
    weights = {name: value.numpy() for name, value in read_weights(llama).items()}
    found = stored(file)
    assert len(found) == len(weights) == done.tensors
    for name, there, wanted in (
        (UP, BLOCK_UP, weights[UP]),
        (Q, BLOCK_Q, by_neighbours(weights[Q], 4)),
    ):
        raw = gguf.GGMLQuantizationType[kind]
        assert found[there].tensor_type == raw, name
        back = gguf.dequantize(gguf.quantize(wanted, raw), raw)
        assert np.array_equal(gguf.dequantize(found[there].data, raw), back), name
    norm = found["blk.0.attn_norm.weight"]
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32
    assert np.array_equal(norm.data, weights["model.layers.0.input_layernorm.weight"])
    table = {"F16": "F16", "BF16": "BF16", "TQ1_0": "F16", "TQ2_0": "F16"}.get(kind, "Q8_0")
    assert found["token_embd.weight"].tensor_type.name == table
    assert not list(tmp_path.glob("*.partial"))


def test_the_config_is_said_in_its_words(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(str(llama), "F16", file)
    assert said(file, "general.architecture") == "llama"
    assert said(file, "general.file_type") == gguf.LlamaFileType.MOSTLY_F16
    wanted = {
        "block_count": 2, "embedding_length": 256, "feed_forward_length": 512,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 64,
        "rope.dimension_count": 64, "vocab_size": 96, "context_length": 128,
    }  # fmt: skip
    assert {key: said(file, f"llama.{key}") for key in wanted} == wanted
    assert said(file, "tokenizer.ggml.model") == "no_vocab"


def test_positions_of_llama_3_are_a_tensor(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, "rope_theta": 500.0,
    }  # fmt: skip
    folder = make("llama", tmp_path / "llama3", rope_parameters=rope)
    write_gguf(str(folder), "F16", tmp_path / "model.gguf")
    # Turns within 16 positions: 2.5 (between), then fewer than one.
    found = stored(tmp_path / "model.gguf")["rope_freqs.weight"].data
    part = (16 / (2 * np.pi) - 1) / 3
    np.testing.assert_allclose(found, [1 / ((1 - part) / 8 + part), 8, 8, 8], rtol=1e-6)


def test_experts_are_stacked_by_number(tmp_path: Path) -> None:
    base = make("llama", tmp_path / "base")
    recipe = copies(base, "mixtral") | {"output": {"shard_size": "20kB"}}
    api.run(recipe, tmp_path / "routed")
    write_gguf(str(tmp_path / "routed"), "F16", tmp_path / "routed.gguf")
    found = stored(tmp_path / "routed.gguf")
    weights = read_weights(tmp_path / "routed")
    names = [f"model.layers.0.block_sparse_moe.experts.{e}.w1.weight" for e in range(4)]
    wanted = torch.stack([weights[name] for name in names]).half().numpy()
    assert np.array_equal(found["blk.0.ffn_gate_exps.weight"].data, wanted)
    assert found["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert said(tmp_path / "routed.gguf", "llama.expert_count") == 4


def test_a_quantised_folder_is_read_as_its_numbers(llama: Path, tmp_path: Path) -> None:
    api.run({"base": str(llama), "output": {"quantize": "W4A16"}}, tmp_path / "codes")
    take = {"base": str(tmp_path / "codes"), "steps": [{"take": {"source": "base"}}]}
    api.run({**take, "output": {"dtype": "float32"}}, tmp_path / "back")
    write_gguf(str(tmp_path / "codes"), "F16", tmp_path / "codes.gguf")
    wanted = read_weights(tmp_path / "back")[UP].half().numpy()
    assert np.array_equal(stored(tmp_path / "codes.gguf")[BLOCK_UP].data, wanted)


def test_rows_that_make_no_blocks_stay_halves_and_are_told(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "small")  # 48 columns are no multiple of 32
    done = write_gguf(str(folder), "Q8_0", tmp_path / "small.gguf")
    assert "3 tensors" in done.notes[0]
    assert stored(tmp_path / "small.gguf")["blk.0.ffn_down.weight"].tensor_type.name == "F16"


def test_what_cannot_be_written_is_told(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for kind, words in (("Q4_K_M", "llama-quantize"), ("iq2_xs", "llama-quantize"), ("Q8", "Q8_0")):
        with pytest.raises(RecipeError, match=words):
            write_gguf(str(llama), kind, out)
    phi = make("phi3", tmp_path / "phi")
    with pytest.raises(RecipeError, match=r"(?s)`phi3` model is not written.*convert_hf_to_gguf"):
        write_gguf(str(phi), "F16", out)
    odd = make("llama", tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    write_json(odd / "config.json", {**config, "hidden_act": "relu"})
    with pytest.raises(RecipeError, match="hidden_act: relu"):
        write_gguf(str(odd), "F16", out)
    rope = {"rope_type": "dynamic", "factor": 2.0}
    write_json(odd / "config.json", {**config, "rope_parameters": rope})
    with pytest.raises(RecipeError, match="positions of type `dynamic`"):
        write_gguf(str(odd), "F16", out)
    write_json(odd / "config.json", config)
    weights = {**read_weights(odd), "model.extra.weight": torch.ones(2, 2)}
    write_weights(odd, weights)
    with pytest.raises(RecipeError, match=r"no place in the file, such as `model\.extra\.weight`"):
        write_gguf(str(odd), "F16", out)
    del weights["model.extra.weight"]
    weights[UP][3, 3] = 1e6
    write_weights(odd, weights)
    with pytest.raises(DataError, match=f"{UP}.*beyond what F16 holds"):
        write_gguf(str(odd), "F16", out)
    out.write_bytes(b"there")
    with pytest.raises(RecipeError, match="there already"):
        write_gguf(str(llama), "F16", out)
    assert [path.name for path in tmp_path.glob("*gguf*")] == ["out.gguf"]


def test_a_full_disk_is_told_before_a_byte(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(ResourceError, match="9 are free"):
        write_gguf(str(llama), "F16", tmp_path / "out.gguf")


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("steps", "pre"), [([BYTES], "gpt-2"), ([DIGITS, {**BYTES, "use_regex": False}], "smollm")]
)
def test_tokens_of_pairs_of_bytes(
    llama: Path, tmp_path: Path, steps: list[dict[str, Any]], pre: str
) -> None:
    data = bpe("abc", [("a", "b"), ("ab", "c")], [("<s>", 5)])
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    folder = tmp_path / "model"
    write_weights(folder, read_weights(llama))
    write_json(folder / "config.json", json.loads((llama / "config.json").read_text()))
    write_json(folder / "tokenizer.json", data)
    write_gguf(str(folder), "F16", tmp_path / "model.gguf")
    file = tmp_path / "model.gguf"
    assert said(file, "tokenizer.ggml.model") == "gpt2"
    assert said(file, "tokenizer.ggml.pre") == pre
    tokens = said(file, "tokenizer.ggml.tokens")
    assert tokens[:7] == ["a", "b", "c", "ab", "abc", "<s>", "[PAD6]"]
    assert len(tokens) == 96
    assert said(file, "tokenizer.ggml.token_type")[4:7] == [1, 3, 5]
    assert said(file, "tokenizer.ggml.merges") == ["a b", "ab c"]


def test_scores_follow_the_order_of_merges(tmp_path: Path) -> None:
    data = bpe("abc", [("a", "b"), ("b", "c")], [])
    data["model"]["byte_fallback"] = True
    data["pre_tokenizer"] = None
    write_json(tmp_path / "tokenizer.json", data)
    found = vocabulary(tmp_path, 5)
    assert found is not None
    assert (found.model, found.pre) == ("llama", "")
    assert found.scores == [0, 0, 0, 0, -1]


def test_tokenizers_that_are_not_followed_are_refused(tmp_path: Path) -> None:
    data = bpe("abc", [("a", "b")], [])
    for pattern, rows, words in (
        ({"type": "Whitespace"}, 5, "neither works on bytes"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, DIGITS, BYTES]}, 5, "in a way that is"),
        (BYTES, 2, "lies beyond the 2 rows"),
    ):
        write_json(tmp_path / "tokenizer.json", {**data, "pre_tokenizer": pattern})
        with pytest.raises(TokenizerError, match=words):
            vocabulary(tmp_path, rows)
    data["model"]["type"] = "Unigram"
    write_json(tmp_path / "tokenizer.json", data)
    with pytest.raises(TokenizerError, match="of type `Unigram`"):
        vocabulary(tmp_path, 5)
