"""A recipe that only copies bytes: what is tested here goes around the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    monkeypatch.setattr("mergekit_lite.plan.digests.cache_file", lambda: tmp_path / "digests.json")


@pytest.fixture
def recipe(base_folder: Path, expert_folders: dict[str, Path]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "base": str(base_folder),
        "experts": {"math": {"model": str(expert_folders["math"])}},
        "steps": [{"take": {"source": "math"}}],
        "output": {"shard_size": "20kB"},
    }
