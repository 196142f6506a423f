from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

import mergekit_lite.ops
from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.ops import _spec
from mergekit_lite.recipe import Recipe, load
from tests.recipe import ops


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> dict[str, _spec.OpSpec]:
    """Put throw-away ops in place of the real ones."""
    mergekit_lite.ops.registry()  # discover the real ones first, into the real registry
    empty: dict[str, _spec.OpSpec] = {}
    monkeypatch.setattr(_spec, "REGISTRY", empty)
    monkeypatch.setattr(mergekit_lite.ops, "REGISTRY", empty)
    return ops.register()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write `recipe.yaml` (or another file) into the working folder and return its path."""
    monkeypatch.chdir(tmp_path)

    def writer(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))
        return path

    return writer


@pytest.fixture
def read(specs: object, write: Callable[..., Path]) -> Callable[..., Recipe]:
    """Write a recipe and load it."""
    return lambda text, *overrides: load(write(text), overrides)


@pytest.fixture
def refused(specs: object, write: Callable[..., Path]) -> Callable[..., list[Problem]]:
    """Write a recipe that must be refused and return its problems."""

    def check(text: str, *overrides: str) -> list[Problem]:
        with pytest.raises(RecipeError) as caught:
            load(write(text), overrides)
        assert caught.value.exit_code == 2
        return list(caught.value.problems)

    return check
