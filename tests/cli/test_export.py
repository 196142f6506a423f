"""`export`: the formats of runtimes from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mergekit_lite.cli.export import command
from tests.checkpoints import tiny_llama


def test_a_folder_becomes_codes(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", hidden=64, intermediate=128)
    words = [str(base), "--quantize", "w4a16", "--group-size", "32", "--scales", "mse",
             "--ignore", "*.0.mlp.*", "-o", str(tmp_path / "out")]  # fmt: skip
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["config_groups"]["group_0"]["weights"]["group_size"] == 32
    assert "model.layers.0.mlp.up_proj" in said["ignore"]


def test_a_folder_becomes_a_file(tmp_path: Path) -> None:
    import gguf

    base = tiny_llama(tmp_path / "base")
    (base / "tokenizer.json").unlink(missing_ok=True)
    words = [str(base), "--to", "gguf", "--type", "q8_0", "-o", str(tmp_path / "model.gguf")]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert len(gguf.GGUFReader(tmp_path / "model.gguf").tensors) > 10


@pytest.mark.parametrize("words", [[], ["--to", "gguf", "--quantize", "FP8"]])
def test_one_format_at_a_time(tmp_path: Path, words: list[str]) -> None:
    result = CliRunner().invoke(command, ["model", "-o", str(tmp_path / "out"), *words])
    assert result.exit_code == 2
    assert "either --quantize SCHEME or --to gguf" in result.output
