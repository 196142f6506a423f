"""The references that begin with `zoo:`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_lite.errors import RecipeError, SourceError
from mergekit_lite.folders import cache_folder
from mergekit_lite.sources.zoo import ZooSource, adapters, zoo_folder, zoo_names
from mergekit_lite.zoo.catalog import EXPERTS


def test_the_source_and_the_catalogue_know_the_same_names() -> None:
    experts = [f"smol-{name}" for name in sorted(EXPERTS)]
    assert sorted(adapters()) == sorted(EXPERTS)
    assert zoo_names() == ["smol", *experts, *(f"{name}-full" for name in experts)]


def test_an_expert_resolves_to_its_adapter(tmp_path: Path) -> None:
    model = ZooSource().resolve("zoo:smol-german", tmp_path)
    assert model.reference == "zoo:smol-german"
    assert model.kind == "adapter"
    assert model.adapter is not None
    assert model.root == EXPERTS["german"].folder.resolve()


def test_only_the_scheme_is_accepted() -> None:
    assert ZooSource().accepts("zoo:anything")
    assert not ZooSource().accepts("./zoo")


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(RecipeError, match="did you mean `smol-german`"):
        zoo_folder("zoo:smol-germna")


def test_a_full_expert_that_was_not_made_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEKIT_LITE_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match="zoo build --full"):
        zoo_folder("zoo:smol-german-full")
    made = tmp_path / "zoo" / "smol-german-full"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    assert zoo_folder("zoo:smol-german-full") == made


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MERGEKIT_LITE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder("zoo") == Path("/somewhere/mergekit-lite/zoo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder("zoo") == Path("/home/someone/.cache/mergekit-lite/zoo")
