"""Dense models that the tests of routed ones share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def modules_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the copies that transformers makes of code out of the user's cache."""
    import transformers.dynamic_module_utils as remote

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield
