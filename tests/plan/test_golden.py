"""Whole plans, held against snapshots.

Set MERGEKIT_LITE_UPDATE_GOLDEN=1 to write them anew, and read the difference before committing it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mergekit_lite.plan.build import build
from mergekit_lite.plan.types import Plan
from tests.plan.hollow import llama, recipe, write, write_adapter

GOLDEN = Path(__file__).parent / "golden"
TWO = "experts: {math: {model: math, weight: [0.2, 0.6]}, code: {model: code}}\n"
RECIPES = {
    "ties_with_rules": TWO
    + """steps: [{ties: {density: {math: 0.1, default: 0.3}, lambda: 0.9}}]
rules:
  - {match: {layers: 0, role: mlp}, take: code}
  - {match: {role: attention}, set: {density: 0.5}}
  - {match: {role: norm}, take: base}
output: {shard_size: 8kB}
seed: 7
""",
    "dare_of_an_adapter": """experts:
  tuned: {lora: lora, weight: 0.5, steps: [{dare: {density: 0.5}}]}
  math: {model: math}
steps: [task_arithmetic]
""",
    "layer_swap_in_float32": TWO
    + """steps: [{layer_swap: {from: code, into: math, bottom: 1, top: 0, transition_bottom: 0}}]
output: {dtype: float32}
""",
    "slerp_in_mergekit_numbers": """experts: {math: {model: math}}
steps: [{slerp: {t: [0, 0.5]}}]
compat: mergekit
""",
}


def readable(plan: Plan) -> dict[str, Any]:
    """Return the plan as data that is the same on every machine, with headers as JSON."""
    data = asdict(plan)
    data["folder"] = Path(data["folder"]).name
    for source in data["inputs"].values():
        source["root"] = Path(source["root"]).name
    for shard in data["shards"]:
        shard["header"] = json.loads(shard["header"])
    return json.loads(json.dumps(data))


@pytest.mark.parametrize("name", RECIPES)
def test_the_plan_is_as_recorded(root: Path, name: str) -> None:
    for model in ("base", "math", "code"):
        write(root / model, llama() | {"model.positions": ("I64", (8,))}, shards=2)
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    found = readable(build(recipe(root, "base: base\n" + RECIPES[name])))
    file = GOLDEN / f"{name}.json"
    if os.environ.get("MERGEKIT_LITE_UPDATE_GOLDEN"):
        file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(file.read_text())


def test_every_snapshot_has_its_recipe() -> None:
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(RECIPES)
