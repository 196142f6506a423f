"""Ops of other packages that cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mergekit_lite import ops
from mergekit_lite.errors import RecipeError


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An installed package whose op fails when it is imported."""
    (tmp_path / "broken_kit.py").write_text("raise RuntimeError('no such backend')\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("sharpen", "broken_kit:sharpen", "mergekit_lite.ops")
    monkeypatch.setattr(ops, "entry_points", lambda **_: [entry])
    ops._discover.cache_clear()
    yield "broken_kit:sharpen"
    monkeypatch.undo()
    ops._discover.cache_clear()


def test_an_op_that_cannot_be_loaded_is_named(broken: str) -> None:
    for _ in range(2):
        with pytest.raises(RecipeError) as caught:
            ops.registry()
        (problem,) = caught.value.problems
        assert problem.what == f"the op `sharpen` ({broken}) cannot be loaded: no such backend"
        assert problem.hint == "update or remove the package that registers it"
