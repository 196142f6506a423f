"""The recipe of the repository that merges patches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mergekit_lite import api, patching
from mergekit_lite.sources import zoo

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "compressed-experts.yaml"


def test_compressed_experts_merge(
    tmp_path: Path,
    base_folder: Path,
    expert_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zoo, "zoo_folder", lambda name: base_folder)
    for name, expert in (("german", "math"), ("french", "code")):
        out = tmp_path / f"{name}.safetensors"
        patching.compress(str(expert_folders[expert]), "zoo:smol", out)
    shutil.copy(RECIPE, tmp_path)
    report = api.run(tmp_path / RECIPE.name, tmp_path / "merged")
    assert {name: seen.measured > 0 for name, seen in report.inputs.items()} == {
        "german": True,
        "french": True,
    }
