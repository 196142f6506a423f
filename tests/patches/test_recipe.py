"""The recipes of the repository that merge patches and tasks of a store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mergekit_lite import api, patching, storing
from mergekit_lite.sources import zoo

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


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
    shutil.copy(RECIPES / "compressed-experts.yaml", tmp_path)
    report = api.run(tmp_path / "compressed-experts.yaml", tmp_path / "merged")
    assert {name: seen.measured > 0 for name, seen in report.inputs.items()} == {
        "german": True,
        "french": True,
    }


def test_tasks_of_a_store_merge(
    tmp_path: Path,
    base_folder: Path,
    expert_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zoo, "zoo_folder", lambda name: base_folder)
    experts = {"german": str(expert_folders["math"]), "french": str(expert_folders["code"])}
    storing.pack(experts, "zoo:smol", tmp_path / "experts.safetensors")
    recipe = Path(shutil.copy(RECIPES / "store-of-experts.yaml", tmp_path))
    report = api.run(recipe, tmp_path / "merged")
    assert {name: seen.measured > 0 for name, seen in report.inputs.items()} == {
        "german": True,
        "french": True,
    }
