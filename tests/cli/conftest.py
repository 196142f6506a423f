"""A recipe over tiny models, and the command line called in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mergekit_lite.cli.main import main

Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What is tested here is the command line; the kernels would be compiled for seconds first.
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    monkeypatch.delenv("MERGEKIT_LITE_DEBUG", raising=False)
    monkeypatch.setattr("mergekit_lite.plan.digests.cache_file", lambda: tmp_path / "digests.json")


@pytest.fixture
def call() -> Call:
    def invoke(*words: object) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words])

    return invoke


@pytest.fixture
def recipe(tmp_path: Path, base_folder: Path, expert_folders: dict[str, Path]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""schema_version: 1
base: {base_folder}
experts:
  math: {{model: {expert_folders["math"]}, weight: 0.5}}
  code: {{model: {expert_folders["code"]}, weight: 0.5}}
steps:
  - task_arithmetic: {{lambda: 0.8}}
"""
    )
    return path
