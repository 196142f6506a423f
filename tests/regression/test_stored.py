"""Every shipped recipe of the zoo and every data-free method gives what it gave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import changelog
import pytest
import regression
from in_memory import Host, scores_of
from thin_zoo import thin_zoo
from zoo_methods import DOMAINS

ENTRIES = regression.entries()
HELD = [name for name in ENTRIES if name in regression.stored()["bytes"]]
"""A recipe that is new is held to its bytes from the first `regression.py --update` on."""
pytestmark = pytest.mark.regression
HOW = 'say under "Numerics" in CHANGELOG.md why, then benchmarks/regression.py --update --numerics'


@pytest.fixture(scope="module")
def known() -> Mapping[str, Any]:
    return regression.stored()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return thin_zoo(tmp_path_factory.mktemp("thin") / "zoo")


@pytest.fixture(scope="module")
def host() -> Host:
    return Host(DOMAINS, regression.WINDOW_BYTES)


@pytest.mark.parametrize("name", HELD)
def test_a_merge_gives_the_bytes_that_it_gave(
    name: str, models: Mapping[str, Path], known: Mapping[str, Any], tmp_path: Path
) -> None:
    now = regression.made(ENTRIES[name], models, tmp_path)
    found = regression.change(now, known["bytes"].get(name))
    assert not found, f"{name}: {found}; {HOW}"


@pytest.mark.parametrize("name", regression.SCORED)
def test_a_score_stays_in_its_interval(
    name: str, host: Host, known: Mapping[str, Any], tmp_path: Path
) -> None:
    found = regression.drift(
        regression.scored(name, host, tmp_path), scores_of(known["scores"][name])
    )
    assert not found, f"{name}: {found}"


def test_what_is_stored_is_of_merges_that_there_are(known: Mapping[str, Any]) -> None:
    assert set(known["bytes"]) <= set(ENTRIES)


def test_every_change_of_bytes_has_its_line_in_the_changelog(known: Mapping[str, Any]) -> None:
    assert not regression.lines_missing(known, changelog.FILE.read_text(encoding="utf-8"))
