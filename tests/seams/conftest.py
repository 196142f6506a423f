"""Puts the package of `site/` on the path as if it were installed, and takes it away again."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergekit_lite import ops, registered
from mergekit_lite.ops._spec import REGISTRY
from tests.checkpoints import perturbed, tiny_llama

SITE = Path(__file__).parent / "site"


def forget() -> None:
    """Let entry points be looked up again."""
    registered._all.cache_clear()
    ops._discover.cache_clear()
    importlib.import_module("mergekit_lite.sources.resolve").registered.cache_clear()


@pytest.fixture
def kit() -> Iterator[None]:
    """The third party's package, installed for one test."""
    ops.registry()
    before = dict(REGISTRY)
    sys.path.insert(0, str(SITE))
    forget()
    yield
    sys.path.remove(str(SITE))
    for name in [name for name in sys.modules if name.partition(".")[0] == "seam_kit"]:
        del sys.modules[name]
    REGISTRY.clear()
    REGISTRY.update(before)
    forget()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and one expert of it, in fp32 so that differences are exact. Read only."""
    folder = tmp_path_factory.mktemp("seams")
    base = tiny_llama(folder / "base", dtype="float32")
    return base, perturbed(base, folder / "expert", seed=1, scale=0.05)
