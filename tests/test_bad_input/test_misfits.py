"""Models that are sound and do not fit together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoints import perturbed, read_weights, tiny_llama, write_weights

from .conftest import LINEAR, World
from .damage import edit_config

Q0 = "model.layers.0.self_attn.q_proj.weight"


def _other(world: World, **changes: int) -> None:
    """Put a model of other sizes in the place of `math`."""
    tiny_llama(world.math, seed=9, **changes)


def _renamed(folder: Path, old: str, new: str) -> None:
    weights = {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in read_weights(folder).items()
    }
    write_weights(folder, weights)


def test_layer_range_past_the_end(world: World) -> None:
    rules = "rules:\n  - {match: {layers: 0-40}, take: base}\n"
    world.refused(
        2, "recipe.yaml:8:", "the model has 2 layers (0-1), asked 0-40", text=LINEAR + rules
    )


def test_layer_swap_past_the_end(world: World) -> None:
    text = LINEAR.replace(
        "task_arithmetic: {lambda: 0.8}", "layer_swap: {from: math, into: code, bottom: 5, top: 2}"
    )
    world.refused(2, "recipe.yaml:6:3", "the model has 2", text=text)


def test_another_depth(world: World) -> None:
    _other(world, layers=3)
    world.refused(2, "recipe.yaml:3:9", "expert `math` has 3 layers (0-2), the base 2 layers (0-1)")


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"hidden": 48}, "hidden_size 48 (base 32)"),
        ({"intermediate": 96}, "intermediate_size 96 (base 64)"),
    ],
)
def test_other_sizes(world: World, sizes: dict[str, int], says: str) -> None:
    _other(world, **sizes)
    said = world.refused(2, "recipe.yaml:3:9", "expert `math` has other shapes", says, " (base ")
    assert said.count("expert `math`") == 1


def test_another_vocabulary(world: World) -> None:
    _other(world, vocab=80)
    said = world.refused(2, "recipe.yaml:3:9", "another vocabulary", "80x32 (base 64x32)")
    for rule in ("base_rows", "common_rows", "union"):
        assert f"`vocab: {rule}`" in said


@pytest.mark.parametrize(
    "rule",
    [
        "rules: [{match: {role: embedding}, take: base}]",
        "vocab: base_rows",
        "vocab: common_rows",
        "vocab: union",
    ],
)
def test_the_rules_named_for_another_vocabulary_work(world: World, rule: str) -> None:
    _other(world, vocab=80)
    result = world.run(f"{LINEAR}{rule}\n")
    assert result.exit_code == 0, result.stderr


def test_another_architecture(world: World) -> None:
    edit_config(world.math, model_type="phi", architectures=["PhiForCausalLM"])
    world.refused(
        2, "recipe.yaml:3:9", "not mergeable: expert `math` is a `phi` model", "one architecture"
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("model.", "", "lack the prefix `model.`"),
        ("", "base_model.", "have the prefix `base_model.`"),
        ("model.", "transformer.", "begin with `transformer.`"),
    ],
)
def test_names_with_another_prefix(world: World, old: str, new: str, says: str) -> None:
    assert world.run().exit_code == 0
    same = read_weights(world.out)
    _renamed(world.math, old, new)
    shutil.rmtree(world.out)
    world.warned("recipe.yaml:3:9", "expert `math`", says, "tensors matched that way")
    for name, value in read_weights(world.out).items():
        assert torch.equal(value, same[name])


def test_missing_tensor(world: World) -> None:
    weights = read_weights(world.math)
    del weights[Q0]
    write_weights(world.math, weights)
    world.refused(2, "recipe.yaml:3:9", "lacks tensors", Q0, "allow_missing")
    result = world.run(LINEAR + f"allow_missing: ['{Q0}']\n")
    assert result.exit_code == 0, result.stderr


def test_extra_tensor(world: World) -> None:
    write_weights(world.math, {**read_weights(world.math), "score.weight": torch.ones(2, 32)})
    world.refused(2, "recipe.yaml:3:9", "has 1 tensor that the base lacks", "score.weight", "drop")


def test_all_misfits_of_one_expert_are_told_at_once(world: World) -> None:
    weights = read_weights(world.math)
    del weights[Q0]
    up = "model.layers.1.mlp.up_proj.weight"
    weights |= {up: torch.ones(8, 32), "score.weight": torch.ones(2, 32)}
    write_weights(world.math, weights)
    said = world.refused(2, "error: 3 problems", "recipe.yaml:3:9", "score.weight", Q0, up)
    for part in ("that the base lacks", "lacks tensors", "other shapes", "8x32 (base 64x32)"):
        assert part in said


def test_rule_that_matches_nothing(world: World) -> None:
    rules = "rules:\n  - {match: '*.rotary_emb.*', drop: true}\n"
    world.refused(2, "recipe.yaml:8:", "matches no tensor", "*.rotary_emb.*", text=LINEAR + rules)


def test_unknown_expert_in_a_rule(world: World) -> None:
    rules = "rules:\n  - {match: '*', take: mth}\n"
    world.refused(2, "recipe.yaml:8:", "`mth`", "did you mean `math`?", text=LINEAR + rules)


def test_linear_takes_no_base_of_its_own(world: World) -> None:
    """`linear` does not read the base, which still says what the result looks like."""
    text = LINEAR.replace("task_arithmetic: {lambda: 0.8}", "linear")
    result = world.run(text)
    assert result.exit_code == 0, result.stderr
    base, math, code, out = (
        read_weights(folder)[Q0] for folder in (world.base, world.math, world.code, world.out)
    )
    assert torch.equal(out, (math.float() * 0.5 + code.float() * 0.5).to(base.dtype))


def test_base_given_as_an_expert_of_linear(world: World) -> None:
    text = LINEAR.replace("task_arithmetic: {lambda: 0.8}", "linear").replace(
        "steps:", "  again: {model: ./base, weight: 1}\nsteps:"
    )
    world.warned("recipe.yaml:5:10", "expert `again` is the base", text=text)


@pytest.mark.parametrize("spelling", ["./base", "math/../base", "{folder}/base", "link"])
def test_base_spelt_another_way_is_the_same_model(world: World, spelling: str) -> None:
    os.symlink("base", world.folder / "link")
    text = LINEAR.replace("model: math", f"model: {spelling.format(folder=world.folder)}")
    world.warned("recipe.yaml:3:9", "expert `math` is the base: its delta is zero", text=text)


def test_expert_with_the_bytes_of_the_base_is_warned_of(world: World) -> None:
    perturbed(world.base, world.math, seed=0, scale=0.0)
    world.warned("expert `math` does not differ from the base in any of")


def test_same_expert_twice_is_warned_of(world: World) -> None:
    world.warned(
        "recipe.yaml:4:9",
        "experts `math` and `code` are the same model",
        text=LINEAR.replace("model: code", "model: ./math"),
    )


def test_copy_of_an_expert_is_warned_of(world: World) -> None:
    perturbed(world.math, world.code, seed=0, scale=0.0)
    world.warned("expert `code` holds the same weights as expert `math`")
