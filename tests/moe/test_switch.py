"""Experts that are switched off are as good as gone; those that are on are chosen by all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergekit_lite import api
from mergekit_lite.errors import RecipeError
from mergekit_lite.export.verify import verify
from tests.moe.dense import load, logits, shapes, tensor, tokens
from tests.moe.routed import make, masked_logits, routers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("glm4_moe", tmp_path_factory.mktemp("switch") / "base")


def switched(base: Path, **bias: Any) -> dict[str, Any]:
    listed = {
        word: {str(layer): own for layer, own in given.items()}
        if isinstance(given, dict)
        else given
        for word, given in bias.items()
    }
    return {"base": str(base), "moe": {"bias": listed}}


def bias_of(layer: int) -> str:
    return f"model.layers.{layer}.mlp.gate.e_score_correction_bias"


def test_what_is_off_is_as_good_as_pruned(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "off"
    api.run(switched(base, off={1: [0, 3], 2: [7]}), out)
    kept = {1: (1, 2, 4, 5, 6, 7), 2: (0, 1, 2, 3, 4, 5, 6)}
    torch.testing.assert_close(logits(out), masked_logits(base, kept), rtol=0, atol=1e-5)
    assert (logits(out) - logits(base)).abs().max() > 0.01
    listed = [expert for expert in range(8) if expert not in (0, 3)]
    api.run(switched(base, off=[0, 3]), tmp_path / "both")
    prune = {"method": "listed", "experts": listed}
    api.run({"base": str(base), "moe": {"prune": prune}}, tmp_path / "pruned")
    torch.testing.assert_close(
        logits(tmp_path / "both"), logits(tmp_path / "pruned"), rtol=0, atol=1e-5
    )
    assert not verify(out)
    assert "layer 1: 0, 3; layer 2: 7" in (out / "README.md").read_text()


def test_layers_are_numbers_in_a_file(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"schema_version: 1\nbase: {base}\nmoe: {{bias: {{off: {{2: [1, 5]}}}}}}\n")
    assert api.plan(file).moe["switched"] == {"off": {"2": [1, 5]}, "on": {}}


def test_only_these_entries_change(base: Path, tmp_path: Path) -> None:
    api.run(switched(base, off={1: [2, 3]}, on={1: [5], 2: [0]}), tmp_path / "out")
    for name in shapes(base):
        before, after = tensor(base, name), tensor(tmp_path / "out", name)
        if name == bias_of(1):
            before[2], before[3], before[5] = -1e4, -1e4, 1e4
        if name == bias_of(2):
            before[0] = 1e4
        assert torch.equal(after, before), name
    plan = api.plan(switched(base, off={1: [2]}))
    assert [job.name for job in plan.jobs if job.kind != "copy"] == [bias_of(1)]


def test_what_is_on_is_chosen_by_every_token(base: Path, tmp_path: Path) -> None:
    api.run(switched(base, on={2: [4]}), tmp_path / "on")
    model, seen = load(tmp_path / "on"), []
    routers(model)[2].register_forward_hook(lambda m, i, output: seen.append(output[2]))
    with torch.no_grad():
        model(tokens())
    assert (seen[0] == 4).any(-1).all()


REFUSED = [
    ({"off": {0: [1]}}, "layer 0 is not routed"),
    ({"off": {1: [8]}}, "layer 1 has no expert 8"),
    ({"off": {1: [2]}, "on": {1: [2]}}, "switched both on and off"),
    ({"off": {1: [0, 1, 2, 3, 4, 5, 6]}}, "too few experts would be left: a token passes 2"),
    ({"on": {1: [0, 1, 2]}}, "more experts on than the 2"),
    ({}, "switches no expert"),
    ({"of": [1]}, "`of`"),
]


@pytest.mark.parametrize(("bias", "told"), REFUSED)
def test_what_cannot_be_switched_is_refused(base: Path, bias: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        api.plan(switched(base, **bias))
    assert told in " ".join(problem.what for problem in caught.value.problems)


def test_groups_of_experts_keep_enough(tmp_path: Path) -> None:
    grouped = make("glm4_moe", tmp_path / "grouped", n_group=2, topk_group=1)
    api.plan(switched(grouped, off={1: [0, 1, 4]}))
    with pytest.raises(RecipeError, match="too few experts would be left"):
        api.plan(switched(grouped, off={1: [0, 1, 2]}))
    with pytest.raises(RecipeError, match="more experts on"):
        api.plan(switched(grouped, on={1: [0, 4]}))


def test_a_family_without_biases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="have no bias in the choice of experts"):
        api.plan(switched(make("mixtral", tmp_path / "base"), off=[1]))
    recipe = switched(tmp_path / "base", off=[1])
    recipe["steps"] = ["linear"]
    with pytest.raises(RecipeError, match=r"`moe.bias` and `steps` do not go together"):
        api.plan(recipe)
