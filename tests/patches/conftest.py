"""A store of two fine-tunes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.patches.stores import made


@pytest.fixture
def experts(expert_folders: dict[str, Path]) -> dict[str, str]:
    return {name: str(expert_folders[name]) for name in ("math", "code")}


@pytest.fixture
def store(tmp_path: Path, base_folder: Path, experts: dict[str, str]) -> Path:
    return made(tmp_path, experts, base_folder)
