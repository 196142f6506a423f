"""Fixtures of the plan's tests: a base and three experts without weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plan.hollow import write


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the models `base`, `math`, `code` and `chat`, all alike."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "math", "code", "chat"):
        write(tmp_path / name)
    return tmp_path
