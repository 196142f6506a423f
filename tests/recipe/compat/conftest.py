from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from mergekit_lite.errors import Problem, RecipeError
from mergekit_lite.recipe import Recipe, load


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a file into the working folder and return its path."""
    monkeypatch.chdir(tmp_path)

    def writer(text: str, name: str = "merge.yml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"))
        return path

    return writer


@pytest.fixture
def read(write: Callable[..., Path]) -> Callable[..., Recipe]:
    """Write a mergekit recipe and load it."""
    return lambda text, *overrides: load(write(text), overrides)


@pytest.fixture
def ours(read: Callable[..., Recipe]) -> Callable[..., dict[str, Any]]:
    """Return what a mergekit recipe is in our language, without what always stands there."""

    def translated(text: str, *overrides: str) -> dict[str, Any]:
        plain = read(text, *overrides).plain()
        assert plain.pop("compat") == "mergekit"
        for key in ("schema_version", "seed", "allow_missing", "extra", "tokenizer"):
            del plain[key]
        del plain["output"]["shard_size"]
        if plain["output"] == {"dtype": "base"}:
            del plain["output"]
        return {key: value for key, value in plain.items() if value != []}

    return translated


@pytest.fixture
def refused(write: Callable[..., Path]) -> Callable[..., list[Problem]]:
    """Write a mergekit recipe that must be refused and return its problems."""

    def check(text: str, *overrides: str) -> list[Problem]:
        with pytest.raises(RecipeError) as caught:
            load(write(text), overrides)
        assert caught.value.exit_code == 2
        return list(caught.value.problems)

    return check
