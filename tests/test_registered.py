"""What other packages register is looked up once."""

from __future__ import annotations

from importlib import metadata

import pytest

from mergekit_lite import registered


def test_packages_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    entries = metadata.EntryPoints(
        metadata.EntryPoint(name, "somewhere:thing", f"mergekit_lite.{group}")
        for name, group in (("a", "ops"), ("b", "sources"), ("c", "ops"))
    )
    monkeypatch.setattr(metadata, "entry_points", lambda: calls.append(1) or entries)
    registered._all.cache_clear()
    try:
        ops = registered.entry_points(group="mergekit_lite.ops")
        assert [entry.name for entry in ops] == ["a", "c"]
        assert registered.entry_points(group="mergekit_lite.sources").names == {"b"}
        assert not registered.entry_points(group="mergekit_lite.executors")
        assert len(calls) == 1
    finally:
        registered._all.cache_clear()
