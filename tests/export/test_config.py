"""config.json: the donor's, with what the merge has changed and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.errors import DataError
from mergekit_lite.export.config import config_dtype, edit_config, parse_config

from .builders import merged


def test_order_and_unknown_keys_stay() -> None:
    config = {"z": 1, "dtype": "float32", "mystery": {"deep": [1, None]}, "a": 2}
    edited = edit_config(config, {"dtype": "bfloat16"})
    assert list(edited) == ["z", "dtype", "mystery", "a"]
    assert edited == {**config, "dtype": "bfloat16"}
    assert config["dtype"] == "float32"


def test_nested_text_config() -> None:
    config = {"text_config": {"tie_word_embeddings": True, "vocab_size": 8}, "x": 1}
    edited = edit_config(config, {"tie_word_embeddings": False})
    assert edited == {"text_config": {"tie_word_embeddings": False, "vocab_size": 8}, "x": 1}


def test_both_levels_and_neither() -> None:
    config = {"vocab_size": 8, "text_config": {"vocab_size": 8}}
    edited = edit_config(config, {"vocab_size": 9, "new": 1})
    assert edited == {"vocab_size": 9, "text_config": {"vocab_size": 9}, "new": 1}


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"text_config": {"dtype": "float32"}}, "float32"),
        ({"dtype": None}, None),
    ],
)
def test_dtype_spellings(config: dict[str, Any], dtype: str | None) -> None:
    assert config_dtype(config) == dtype


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff\xfe"])
def test_broken_config(data: bytes) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        parse_config(data, "config.json")


def test_unchanged_is_byte_for_byte(
    tmp_path: Path, base_folder: Path, recipe: dict[str, Any]
) -> None:
    out = merged(tmp_path / "out", recipe)
    assert (out / "config.json").read_bytes() == (base_folder / "config.json").read_bytes()


def test_written_dtype_is_named(tmp_path: Path, base_folder: Path, recipe: dict[str, Any]) -> None:
    out = merged(tmp_path / "out", {**recipe, "output": {"dtype": "float16"}})
    before = json.loads((base_folder / "config.json").read_text())
    after = json.loads((out / "config.json").read_text())
    assert after == {**before, "dtype": "float16"}
    assert list(after) == list(before)
