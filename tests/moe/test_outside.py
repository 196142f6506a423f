"""Layers outside of those that are routed, as experts that are all one."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from mergekit_lite.calibrate.probe import belonging, identical_layers, probe
from mergekit_lite.calibrate.run import Settings, prepare
from mergekit_lite.calibrate.texts import prompts
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.moe.families import FAMILIES
from mergekit_lite.sources import resolve
from tests.calibrate.conftest import save_model
from tests.checkpoints import perturbed
from tests.moe.dense import apart, config, load, shapes, tensor
from tests.moe.test_refusals import refused

Dense = Callable[..., Path]
CASES = [
    ("llama", "mixtral"),
    ("llama", "granitemoe"),
    ("llama", "granitemoeshared"),
    ("llama", "glm4_moe"),
    ("qwen2", "qwen2_moe"),
    ("qwen3", "qwen3_moe"),
]


def described(dense: Dense, family: str, target: str, **moe: Any) -> dict[str, Any]:
    """Return a recipe that routes the layer in the middle of three."""
    asked = {"target": target, "experts": ["math", "math", "math"], "gate": "random"}
    more = {"layers": "1", "outside": "identical", "for_training": True}
    return {
        "base": str(dense(family)),
        "experts": {"math": str(dense(family, 1))},
        "moe": {**asked, **more, **moe},
    }


@pytest.mark.parametrize(("family", "target"), CASES)
def test_the_other_layers_say_what_the_base_says(
    dense: Dense, tmp_path: Path, family: str, target: str
) -> None:
    recipe = described(dense, family, target)
    api.run(recipe, tmp_path / "routed")
    swapped = {key: recipe[key] for key in ("base", "experts")}
    rule = {"match": {"layers": "1", "name": "*.mlp.*"}, "take": "math"}
    api.run({**swapped, "steps": [{"take": {"source": "base"}}], "rules": [rule]}, tmp_path / "one")
    assert apart(tmp_path / "one", tmp_path / "routed") < 5e-6
    again = tmp_path / "again"
    load(tmp_path / "routed").save_pretrained(again)
    assert shapes(tmp_path / "routed") == shapes(again)
    router = tensor(tmp_path / "routed", f"model.layers.2.{FAMILIES[target].router}")
    assert not router.any()


def test_copies_are_moved_and_counted(dense: Dense, tmp_path: Path) -> None:
    recipe = described(dense, "llama", "mixtral")
    plan = api.plan(recipe)
    copies = [job for job in plan.jobs if ".layers.2.block_sparse_moe.experts." in job.name]
    assert len(copies) == 9
    assert {(job.kind, job.reads[0].source) for job in copies} == {("copy", "base")}
    assert plan.moe["parameters"]["total"] == sum(prod(job.shape) for job in plan.jobs)
    # Two layers, two copies more of three matrices.
    more = 2 * 2 * 3 * 32 * 48
    assert any(f"{more:,} parameters more" in warning for warning in plan.warnings)
    assert plan.moe["parameters"]["total"] - plan.moe["parameters"]["active"] == 3 * 3 * 32 * 48
    api.run(recipe, tmp_path / "out")
    assert identical_layers(tmp_path / "out") == {0, 2}
    assert "mlp_only_layers" not in config(tmp_path / "out")
    for number in range(3):
        name = f"model.layers.2.block_sparse_moe.experts.{number}.w1.weight"
        base = tensor(dense("llama"), "model.layers.2.mlp.gate_proj.weight")
        assert torch.equal(tensor(tmp_path / "out", name), base)


def test_gates_from_texts_see_the_base_there_and_probes_pass_them_by(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "llama")
    for seed, name in enumerate(("math", "code"), 1):
        perturbed(base, tmp_path / name, seed=seed, scale=0.05)
    texts = {"math": ["w4 w5 w6 w7"], "code": ["w40 w41 w42 w43"]}
    recipe = {
        "base": str(base),
        "experts": {name: str(tmp_path / name) for name in texts},
        "moe": {
            "target": "mixtral",
            "experts": [{"expert": name, "prompts": own} for name, own in texts.items()],
            "experts_per_token": 1,
            "gate": "ridge",
            "layers": "1-",
            "outside": "identical",
        },
    }
    api.run(recipe, tmp_path / "out")
    model = resolve(str(tmp_path / "out"), relative_to=tmp_path)
    lines = [text for name, own in texts.items() for text in prompts(name, own)]
    prepared = prepare(model, lines, [], Settings())
    weights = Weights(prepared.skeleton, {"model": model})
    belongs = belonging(prepared.samples.domains, ("math", "code"), {})
    found = probe(
        prepared, weights, ("math", "code"), belongs, baselines=False, without=frozenset({0})
    )
    assert [layer.layer for layer in found.layers] == [1, 2]
    assert found.right_in_all() > 0.9


REFUSED = [
    ("llama", {"outside": "identcal"}, "did you mean `identical`"),
    ("llama", {"layers": None}, "no layers outside of those that are routed"),
    ("llama", {"target": "routed"}, "keeps the other layers as they are"),
    ("llama", {"split": 2}, "`outside: identical` and `split` do not go together"),
    ("llama", {"outside": None}, "or write `outside: identical`"),
    (
        "deepseek_v2",
        {"target": "deepseek_v2", "experts_per_token": 2},
        "2 of 3 copies of a layer say less than the layer",
    ),
    ("llama", {"target": "lora_moe"}, "`moe.outside` says nothing to adapters"),
]


@pytest.mark.parametrize(("family", "moe", "text"), REFUSED)
def test_what_copies_cannot_stand_for_is_refused(
    dense: Dense, family: str, moe: dict[str, Any], text: str
) -> None:
    assert text in refused(described(dense, family, **{"target": "mixtral", **moe}))


def test_layers_that_are_merged_are_no_copies(dense: Dense) -> None:
    recipe = described(dense, "llama", "mixtral") | {"steps": ["task_arithmetic"]}
    assert "copies the base's own feed-forward layers" in refused(recipe)
    recipe["rules"] = [{"match": {"layers": "0,2", "name": "*.mlp.*"}, "take": "base"}]
    api.plan(recipe)
