"""What ships: adapters, their records, held-out text and its licences."""

from __future__ import annotations

import json
import re

import pytest

from mergekit_lite.checkpoint import read_adapter
from mergekit_lite.errors import RecipeError
from mergekit_lite.zoo.catalog import ADAPTERS, EXPERTS, HOME, TEXT, expert_named, held_out_text

PROJECTIONS = 7 * 30


def test_there_are_at_least_three_experts_and_no_stray_adapter() -> None:
    assert len(EXPERTS) >= 3
    assert {folder.name for folder in ADAPTERS.iterdir()} == set(EXPERTS)


def test_all_that_ships_stays_within_25_mb() -> None:
    assert sum(file.stat().st_size for file in HOME.rglob("*") if file.is_file()) <= 25_000_000


@pytest.mark.parametrize("name", EXPERTS)
def test_an_adapter_covers_every_linear_of_the_base(name: str) -> None:
    adapter = read_adapter(EXPERTS[name].folder)
    assert adapter.base_model == "zoo:smol"
    assert len(adapter.factors) == PROJECTIONS
    assert "model.layers.29.mlp.down_proj.weight" in adapter.factors
    assert {tensor.dtype for tensor in adapter.header.tensors.values()} == {"BF16"}


@pytest.mark.parametrize("name", EXPERTS)
def test_a_record_says_how_the_adapter_was_made(name: str) -> None:
    record = json.loads((EXPERTS[name].folder / "TRAINING.json").read_text(encoding="utf-8"))
    settings = EXPERTS[name].adapter
    assert record["command"] == f"mergekit-lite zoo train {name}"
    assert record["settings"]["seed"] == settings.seed
    assert record["settings"]["steps"] == settings.steps
    assert record["data"]["licence"] == EXPERTS[name].licence
    assert record["loss_last_tenth"] < record["loss_first_tenth"]
    scores = record["bits_per_byte"]
    assert scores["expert"] < scores["base"]


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_held_out_text_is_there_in_a_useful_size(name: str, split: str) -> None:
    assert 10_000 <= held_out_text(name, split).stat().st_size <= 50_000


@pytest.mark.parametrize("name", EXPERTS)
def test_the_splits_share_no_line(name: str) -> None:
    test, validation = (
        set(held_out_text(name, split).read_text(encoding="utf-8").splitlines())
        for split in ("test", "validation")
    )
    assert not test & validation


def test_every_text_has_its_licence_in_full_beside_it() -> None:
    licences = (TEXT / "LICENSES.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^## (.+)$", licences, re.M))
    for file in TEXT.glob("*.txt"):
        row = next(line for line in licences.splitlines() if f"`{file.name}`" in line)
        assert row.split("|")[-2].strip() in headings


def test_an_expert_goes_by_its_short_and_its_full_name() -> None:
    assert expert_named("german") is expert_named("zoo:smol-german")


def test_the_nearest_expert_is_named() -> None:
    with pytest.raises(RecipeError, match="did you mean `german`"):
        expert_named("germen")
