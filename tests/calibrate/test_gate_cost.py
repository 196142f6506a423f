"""What `plan` says that gates cost, beside what making them takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mergekit_lite import api
from mergekit_lite.cli.main import main
from mergekit_lite.errors import ResourceError
from mergekit_lite.moe.gate_cost import gate_cost
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.row_memory import TEXT_BYTES
from tests.calibrate.conftest import save_model
from tests.calibrate.test_gates import PROMPTS, recipe
from tests.checkpoints import perturbed
from tests.engine.processes import TELL_PEAK, told_peak

RUN = """
import json, sys
from mergekit_lite import api
api.run(json.loads(sys.argv[1]), sys.argv[2], threads=1)
"""


def zoo_of(home: Path, **sizes: Any) -> Path:
    base = save_model(home / "base", "llama", **sizes)
    for seed, name in enumerate(PROMPTS, 1):
        perturbed(base, home / name, seed=seed, scale=0.05)
    return home


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama `base` and two experts of it, `math` and `code`."""
    return zoo_of(tmp_path_factory.mktemp("cost"))


@pytest.mark.slow
@pytest.mark.parametrize("gate", [{"method": "ridge", "through": "expert"}, "phatgoose"])
def test_the_estimate_is_an_upper_bound_and_not_twice_as_much(tmp_path: Path, gate: Any) -> None:
    home = zoo_of(tmp_path, vocab_size=60_000, hidden_size=256, tie_word_embeddings=False)
    asked = recipe(home, gate)
    for last, expert in enumerate(asked["moe"]["experts"], 7):
        expert["prompts"] = [f"w{4 + i % 50} w5 w6 w{last}" for i in range(500)]

    told = estimate(api.plan(asked), threads=1).peak_memory

    command = [sys.executable, "-c", TELL_PEAK + RUN, json.dumps(asked), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    taken = told_peak(done.stderr)
    assert taken <= told <= 2 * taken, (taken, told)


def test_what_gates_cost_is_told_before_a_weight_is_read(zoo: Path) -> None:
    plan = api.plan(recipe(zoo, {"method": "ridge", "labels": "perplexity"}))
    cost = gate_cost(plan)
    # Fewer than the bytes of the texts, two more for each text.
    assert "at most 61 tokens) run once through the base" in cost.text
    assert "once more through each of 2 experts to be labelled" in cost.text
    assert TEXT_BYTES < cost.memory < 1.1 * TEXT_BYTES
    assert estimate(plan).peak_memory >= cost.memory

    cost = gate_cost(api.plan(recipe(zoo, {"method": "phatgoose", "steps": 7})))
    assert "through the expert that they are for; 6 rows are trained for 7 steps" in cost.text
    for gate in ("random", {"method": "random", "std": 1.0}):
        plan = api.plan(recipe(zoo, gate))
        assert gate_cost(plan).memory == 0
        assert estimate(plan).peak_memory < TEXT_BYTES


def test_more_tokens_wider_sums_and_more_passes_cost_more(zoo: Path, tmp_path: Path) -> None:
    def memory(gate: Any, lines: int = 3) -> int:
        asked = recipe(zoo, gate)
        for expert in asked["moe"]["experts"]:
            file = tmp_path / f"{expert['expert']}{lines}.txt"
            file.write_text("w4 w5 w6 w7\n" * lines)
            expert.pop("prompts")
            expert["data"] = str(file)
        return gate_cost(api.plan(asked)).memory

    assert memory("ridge", 1000) - memory("ridge", 500) == int(1.25 * 4 * 2 * 6000 * 32)
    limited = {"method": "ridge", "tokens": 1000}
    assert memory(limited, 1000) == memory(limited, 500) < memory("ridge", 500)
    assert memory({"method": "ridge", "confidence": 0.7}) - memory("ridge") == 24 * 4096 * 32
    assert memory({"method": "ridge", "through": "expert"}) > memory("ridge")


def test_too_little_memory_for_the_texts_is_refused_when_planning(
    zoo: Path, tmp_path: Path
) -> None:
    with pytest.raises(ResourceError) as caught:
        api.run(recipe(zoo, "ridge"), tmp_path / "out", max_memory=300_000_000)
    assert "fewer `tokens` need less" in str(caught.value.problems[0].hint)
    assert not (tmp_path / "out").exists()

    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(zoo, "ridge")))
    told = CliRunner().invoke(main, ["plan", str(path)])
    assert told.exit_code == 0
    assert "gates   `ridge`: texts (at most 61 tokens) run once through the base" in told.output
