"""Bits per byte: by hand on a model that knows nothing, and on the real ones."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mergekit_lite.errors import RecipeError, SourceError
from mergekit_lite.zoo.catalog import EXPERTS
from mergekit_lite.zoo.score import bits, folder_of, origin, score, text_windows


def test_windows_are_whole_lines_of_512_bytes_or_more() -> None:
    found = text_windows("german", "test", 4)
    assert len(found) == 4
    for window in found:
        assert window.endswith("\n")
        assert len(window.encode()) >= 512
        shorter = "".join(window.splitlines(keepends=True)[:-1])
        assert len(shorter.encode()) < 512
    text = (folder := Path(__file__).parents[2] / "mergekit_lite/zoo/text") / "german.txt"
    assert folder.is_dir()
    assert text.read_text(encoding="utf-8").startswith("".join(found))


def test_more_windows_than_there_are_is_refused() -> None:
    with pytest.raises(RecipeError, match="fewer than 1000"):
        text_windows("french", "validation", 1000)


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_for_each_token() -> None:
    import torch

    def tokenizer(text: str) -> Any:
        return SimpleNamespace(input_ids=list(text.encode()))

    def model(input_ids: Any, use_cache: bool) -> Any:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 256))

    assert bits(model, tokenizer, "twelve bytes") == pytest.approx(12 * 8)


def test_no_model_in_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no model there"):
        folder_of(str(tmp_path))


def test_where_a_model_came_from_is_read_from_its_config(tmp_path: Path) -> None:
    assert origin(tmp_path) is None
    (tmp_path / "config.json").write_text('{"dequantised_from": "4 bits"}')
    assert origin(tmp_path) == "4 bits"


@pytest.mark.slow
def test_every_expert_beats_the_base_on_its_own_domain() -> None:
    names = ["zoo:smol", *(expert.reference for expert in EXPERTS.values())]
    found = score(names, windows=2)
    value = {(row.model, row.domain): row.bits_per_byte for row in found}
    for expert in EXPERTS.values():
        gain = value["zoo:smol", expert.name] - value[expert.reference, expert.name]
        assert gain > 0.05
        assert all(math.isfinite(number) and number > 0 for number in value.values())
