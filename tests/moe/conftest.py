"""Dense models that the tests of routed ones share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.moe.dense import make


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns a dense model of a family and seed, made once. Read only."""
    root = tmp_path_factory.mktemp("dense")
    made: dict[tuple[str, int], Path] = {}

    def get(family: str, seed: int = 0) -> Path:
        if (family, seed) not in made:
            made[family, seed] = make(family, root / f"{family}{seed}", seed=seed)
        return made[family, seed]

    return get
