"""Every file of the donor that is not weights arrives, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.export.companions import copy_companions, is_weights

from .builders import merged


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("model.safetensors", True),
        ("model.safetensors.index.json", True),
        ("pytorch_model-00001-of-00002.bin", True),
        ("original/consolidated.00.pth", True),
        ("tokenizer.model", False),
        ("tokenizer.json", False),
        ("vocab.txt", False),
        ("modeling_custom.py", False),
    ],
)
def test_what_counts_as_weights(name: str, weights: bool) -> None:
    assert is_weights(Path(name)) is weights


def test_subfolders_and_own_files(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    out.mkdir()
    paths = ["vocab.json", "additional_chat_templates/tool.jinja", "README.md", "x.bin"]
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(bytes([number, 0, 255]))
    copied = copy_companions(root, map(Path, paths), out)
    assert copied == ["additional_chat_templates/tool.jinja", "vocab.json"]
    for path in copied:
        assert (out / path).read_bytes() == (root / path).read_bytes()
    assert not (out / "README.md").exists()


def test_a_run_carries_them_all(tmp_path: Path, base_folder: Path, recipe: dict[str, Any]) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    (base / "LICENSE").write_text("all mine\n")
    (base / "processor").mkdir()
    (base / "processor" / "unheard.of").write_bytes(b"\0\1\2")
    (base / "pytorch_model.bin").write_bytes(b"old weights")
    out = merged(tmp_path / "out", {**recipe, "base": str(base)})
    weights = {"model.safetensors", "pytorch_model.bin"}
    for path in base.rglob("*"):
        name = path.relative_to(base)
        if path.is_file() and str(name) not in weights:
            assert (out / name).read_bytes() == path.read_bytes(), name
    assert not (out / "pytorch_model.bin").exists()
