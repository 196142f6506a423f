"""V20: assembling takes as much memory for many layers as for few, by count and by a process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite import api
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.row_memory import PROCESS_BYTES
from tests.engine.processes import TELL_PEAK, Command, told_peak
from tests.moe.dense import make

MEGABYTE = 1_000_000
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8}


def recipe(base: Path, target: str) -> dict[str, Any]:
    """Return a recipe of four experts whose down projections are computed, not copied."""
    halves = [{"expert": "base", "residual_scale": 0.5}] * 4
    return {
        "base": str(base),
        "moe": {"target": target, "experts": halves, "gate": "random", "for_training": True},
    }


@pytest.mark.parametrize("target", ["mixtral", "granitemoe"])
def test_the_estimate_does_not_grow_with_the_layers(tmp_path: Path, target: str) -> None:
    few, many = (
        api.plan(recipe(make("llama", tmp_path / str(n), num_hidden_layers=n), target))
        for n in (2, 20)
    )
    rows = len(many.jobs) - len(few.jobs)
    grown = estimate(many).peak_memory - estimate(few).peak_memory
    assert 0 < grown < 2000 * rows  # the table of rows itself


@pytest.mark.slow
@pytest.mark.parametrize("target", ["mixtral", "granitemoe"])
def test_a_process_holds_less_than_a_layer_of_experts(tmp_path: Path, target: str) -> None:
    cache = tmp_path / "cache"
    peaks = []
    for layers in (2, 2, 20):  # the first run of all compiles what it needs
        folder = tmp_path / f"{len(peaks)}"
        folder.mkdir()
        make("llama", folder / "base", num_hidden_layers=layers, **WIDE)
        peaks.append(peak(folder, target, cache))
    layer = 4 * 3 * 512 * 1536 * 4
    assert peaks[2] - PROCESS_BYTES < layer + 100 * MEGABYTE
    assert peaks[2] - peaks[1] < 40 * MEGABYTE  # 18 layers of experts are 680 MB


def peak(folder: Path, target: str, cache: Path) -> int:
    """Return the most resident memory in bytes that an assembly took."""
    (folder / "recipe.yaml").write_text(json.dumps(recipe(Path("base"), target)))
    words = ("recipe.yaml", "-o", "out", "--threads", 2)
    ended = Command(folder, words, cache=cache, before=TELL_PEAK).end()
    assert ended.code == 0, ended.said
    return told_peak(ended.said)
