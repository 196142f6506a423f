"""llama.cpp, and small models to run in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.moe.dense import make


@pytest.fixture(scope="session", autouse=True)
def llama_cpp() -> None:
    """Skips all tests here where llama.cpp is not installed."""
    pytest.importorskip(
        "llama_cpp", reason="`make test-runtime` compiles and installs llama-cpp-python"
    )


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns a dense model of a family and seed, made once. Read only."""
    root = tmp_path_factory.mktemp("dense")

    def get(family: str, seed: int = 0, **own: object) -> Path:
        folder = root / "-".join((family, str(seed), *map(str, own.values())))
        return folder if folder.exists() else make(family, folder, seed=seed, **own)

    return get
