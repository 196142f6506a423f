"""An executor of another package: it gets shard numbers and gives back finished files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergekit_lite import api
from mergekit_lite.engine.events import Event
from mergekit_lite.errors import RecipeError

Pair = tuple[Path, Path]


def recipe(pair: Pair) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "base": str(pair[0]),
        "experts": {"x": {"model": str(pair[1])}},
        "steps": [{"ties": {"density": 0.3}}],
        "output": {"dtype": "bfloat16", "shard_size": "20KB"},
    }


def run(pair: Pair, out: Path, executor: str) -> list[Event]:
    seen: list[Event] = []
    api.run(recipe(pair), out, executor=executor, emit=seen.append)
    return seen


@pytest.mark.usefixtures("kit")
def test_it_makes_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    run(pair, tmp_path / "local", "local")
    seen = run(pair, tmp_path / "other", "backwards")
    texts = [event.text for event in seen if event.text.startswith("backwards")]
    files = sorted(path.name for path in (tmp_path / "local").glob("*.safetensors"))
    assert len(files) > 2
    assert texts == [f"backwards: shard {number}" for number in reversed(range(len(files)))]
    for name in files:
        assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


@pytest.mark.usefixtures("kit")
def test_an_unknown_executor_is_named_with_the_nearest(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="backwards"):
        run(pair, tmp_path / "out", "backward")
