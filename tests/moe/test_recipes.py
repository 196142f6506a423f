"""The repository's recipes whose base is a routed model, over small ones of the right kind."""

from __future__ import annotations

import shutil
from pathlib import Path

from mergekit_lite import api
from mergekit_lite.calibrate.run import Settings, calibrate
from mergekit_lite.calibrate.texts import prompts
from mergekit_lite.plan.types import GATE, Plan
from mergekit_lite.sources import resolve
from tests.checkpoints import write_tokenizer
from tests.moe import dense, routed
from tests.moe.test_grow import four_experts, part_of
from tests.plan.test_recipes import OF_ROUTED, RECIPES


def planned(name: str, folder: Path) -> Plan:
    assert name in OF_ROUTED
    return api.plan(Path(shutil.copy(RECIPES / f"{name}.yaml", folder)))


def test_experts_of_models_with_a_public_one_are_joined(tmp_path: Path) -> None:
    whole = four_experts("flex_olmo", tmp_path / "whole")
    for expert, name in enumerate(("math", "code", "law"), start=1):
        part_of(whole, tmp_path / f"public-and-{name}", [0, expert])
    plan = planned("moe-flex-olmo", tmp_path)
    assert plan.config["num_experts"] == 4
    assert {job.reads[0].source for job in plan.jobs if ".experts." in job.name} == {
        "base", "code", "law",
    }  # fmt: skip


def test_a_routed_model_gets_two_experts_more(tmp_path: Path) -> None:
    routed.make("glm4_moe", tmp_path / "routed")
    dense.make("llama", tmp_path / "law", intermediate_size=24)
    assert planned("moe-grow", tmp_path).config["n_routed_experts"] == 10


def test_half_of_the_experts_are_left_out_or_merged(tmp_path: Path) -> None:
    base = routed.make("mixtral", tmp_path / "routed")
    write_tokenizer(base, 96)
    words = [" ".join(f"w{3 + (7 * i + j * j) % 90}" for j in range(30)) for i in range(4)]
    calibrate(
        resolve(str(base), relative_to=tmp_path),
        prompts("a", words),
        tmp_path / "statistics",
        kinds=("rates", "merging"),
        settings=Settings(length=64),
    )
    for name in ("moe-prune", "moe-merge-experts"):
        assert planned(name, tmp_path).config["num_local_experts"] == 4


def test_routers_of_merged_models_are_fitted(tmp_path: Path) -> None:
    routed.make("mixtral", tmp_path / "routed")
    for seed, name in enumerate(("math", "code"), 1):
        routed.make("mixtral", tmp_path / f"routed-{name}", seed=seed)
        (tmp_path / f"{name}.jsonl").write_text('{"text": "w3 w4"}')
    plan = planned("moe-merge-routed", tmp_path)
    assert plan.moe["routers"]["method"] == "harc"
    assert [job.name for job in plan.jobs if job.reads[0].source == GATE] == list(
        plan.moe["routers"]["rows"]
    )
