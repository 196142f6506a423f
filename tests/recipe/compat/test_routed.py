"""Recipes of `mergekit-moe`, read as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mergekit_lite.errors import Problem
from mergekit_lite.recipe import Recipe

Ours = Callable[..., dict[str, Any]]
Refused = Callable[[str], list[Problem]]

WHOLE = """
base_model: org/base
gate_mode: hidden
dtype: bfloat16
experts_per_token: 1
architecture: mixtral
experts:
  - source_model: org/math
    positive_prompts: ["solve for x", "integral"]
    negative_prompts: ["poem"]
    residual_scale: 0.5
  - source_model: org/code
    positive_prompts: ["def main():"]
    noise_scale: 0.002
  - source_model: org/base
    positive_prompts: ["hello"]
"""


def test_every_key_has_its_like_here(ours: Ours) -> None:
    found = ours(WHOLE)
    assert found["base"] == "org/base"
    assert {n: e["model"] for n, e in found["experts"].items()} == {
        "math": "org/math",
        "code": "org/code",
    }
    assert found["output"]["dtype"] == "bfloat16"
    moe = found["moe"]
    assert (moe["target"], moe["experts_per_token"]) == ("mixtral", 1)
    assert moe["gate"] == {"method": "hidden"}
    math, code, base = moe["experts"]
    assert math["expert"] == "math"
    assert math["prompts"] == ["solve for x", "integral"]
    assert math["negative"] == ["poem"]
    assert math["residual_scale"] == 0.5
    assert code["noise"] == {"scale": 0.002, "relative": False}
    assert base == {"expert": "base", "prompts": ["hello"]}


def test_random_gates_are_mergekits_own_scales(ours: Ours) -> None:
    text = WHOLE.replace("gate_mode: hidden", "gate_mode: random")
    assert ours(text)["moe"]["gate"] == {"method": "random", "init": "normal", "std": 1.0}
    text = WHOLE.replace("gate_mode: hidden", "gate_mode: uniform_random")
    assert ours(text)["moe"]["gate"] == {"method": "random", "init": "uniform"}


def test_a_shared_expert(read: Callable[..., Recipe]) -> None:
    shared = "shared_experts:\n  - {source_model: org/base, positive_prompts: [x]}\n"
    recipe = read(WHOLE + shared)
    assert recipe.moe is not None
    assert recipe.moe.shared is not None
    assert recipe.moe.shared.expert == "base"
    assert "prompts are left out" in " ".join(recipe.notes)


def test_keys_can_be_set_in_either_language(ours: Ours) -> None:
    assert ours(WHOLE, "experts_per_token=2")["moe"]["experts_per_token"] == 2
    assert ours(WHOLE, "seed=3", "moe.for_training=true")["moe"]["for_training"] is True


def test_what_is_wrong_is_told_with_its_line(refused: Refused) -> None:
    text = WHOLE.replace("gate_mode: hidden", "gate_mode: hiden").replace(
        "architecture: mixtral", "architecture: deepseek"
    )
    found = {problem.where: problem for problem in refused(text + "experts_per_tokens: 2\n")}
    assert "did you mean `hidden`" in found["merge.yml:2:12"].hint
    assert "granitemoeshared" in found["merge.yml:5:15"].hint
    assert "did you mean `experts_per_token`" in found["merge.yml:16:1"].hint
