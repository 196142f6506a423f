"""mergekit recipes as people have them: run as they are, or refused in words that help."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoints import read_weights, tiny_llama
from tests.plan.hollow import write_adapter
from tests.test_bad_input.conftest import World

MERGE = """\
models:
  - model: base
    # no parameters necessary for base model
  - model: math
    parameters: {weight: 0.5, density: 0.5}
  - model: ./code
    parameters: {weight: 0.3, density: 0.5}
merge_method: ties
base_model: ./base/
parameters: {int8_mask: true}
dtype: bfloat16
"""

SLERP = """\
slices:
  - sources:
      - {model: math, layer_range: [0, 2]}
      - {model: code, layer_range: [0, 2]}
merge_method: slerp
base_model: math
parameters: {t: [{filter: self_attn, value: [0, 1]}, {value: 0.5}]}
"""


@pytest.mark.parametrize("text", [MERGE, SLERP])
def test_it_runs_as_it_is(world: World, text: str) -> None:
    result = world.run(text)
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr
    assert world.call("verify", world.out).exit_code == 0
    assert world.call("check", "recipe.yaml").exit_code == 0
    assert world.call("import", "recipe.yaml", "-o", "ours.yaml").exit_code == 0
    assert world.call("run", "ours.yaml", "-o", "again").exit_code == 0
    first, again = (read_weights(world.folder / name) for name in ("out", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    readme = (world.out / "README.md").read_text()
    assert "- mergekit\n" in readme


def test_anchors(world: World) -> None:
    text = """\
shared: &half {weight: 0.5, density: 0.5}
models:
  - {model: math, parameters: *half}
  - {model: code, parameters: {<<: *half, density: 0.3}}
merge_method: ties
base_model: base
"""
    world.refused(2, "recipe.yaml:1:1", "unknown key `shared`", text=text)
    models = text.partition("\n")[2].replace("*half", "&half {weight: 0.5, density: 0.5}", 1)
    result = world.run(models)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (": ties", ": dare-ties", ("recipe.yaml:8:15", "did you mean `dare_ties`?")),
        ("weight: 0.3", "weigth: 0.3", ("recipe.yaml:7:18", "did you mean `weight`?")),
        ("density: 0.5}\n  -", "density: 1.7}\n  -", ("recipe.yaml:5:40", "0 < density <= 1")),
        (": bfloat16", ": bfloat", ("recipe.yaml:11:8", "did you mean `bfloat16`?")),
        (
            "parameters: {int8_mask: true}",
            "normalize: true",
            ("recipe.yaml:10:1", "parameters: {normalize: true}"),
        ),
        (
            "int8_mask: true",
            "random_seed: 3",
            ("recipe.yaml:10:14", "write `seed: 0` at the top"),
        ),
        ("weight: 0.3, ", "", ("recipe.yaml:6:5", "`ties` needs `weight` for `./code`")),
        (
            "merge_method: ties",
            "merge_method: breadcrumbs_ties",
            ("`gamma` of", "0 <= gamma < 1"),
        ),
    ],
)
def test_slips_of_the_pen(world: World, old: str, new: str, said: tuple[str, ...]) -> None:
    assert old in MERGE
    text = MERGE.replace(old, new)
    if "breadcrumbs" in new:
        text = text.replace("weight: 0.3", "weight: 0.3, gamma: 1.0")
    world.refused(2, *said, text=text)


def test_layers_past_the_end(world: World) -> None:
    text = SLERP.replace("[0, 2]", "[0, 32]")
    world.refused(2, "recipe.yaml:", "2 layers (0-1)", "0-31", text=text)


def test_models_of_differing_depth(world: World) -> None:
    shutil.rmtree(world.code)
    tiny_llama(world.code, layers=3)
    world.refused(2, "expert `code`", "3 layers", text=MERGE)


def test_a_bare_adapter_as_a_model(world: World) -> None:
    write_adapter(world.folder / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    text = MERGE.replace("model: math", "model: lora")
    world.refused(2, "is a LoRA of", "not a model", text=text)


def test_a_model_that_is_not_there(world: World) -> None:
    world.refused(5, "recipe.yaml:4:12", "there is no folder", text=MERGE.replace("math", "maths"))


def test_the_recipe_and_its_models_are_judged_together(world: World) -> None:
    text = MERGE.replace(": bfloat16", ": bf16").replace("math", "maths")
    said = world.refused(2, "unknown dtype `bf16`", text=text)
    assert "there is no folder" in said


def test_what_is_read_past_is_named(world: World) -> None:
    text = MERGE.replace("int8_mask: true", "int8_mask: true, t: 0.3")
    world.warned("recipe.yaml:10:31: `t` is left out, as mergekit does", text=text)


def test_a_filter_that_fits_nothing_is_named(world: World) -> None:
    text = MERGE.replace("weight: 0.3", "weight: [{filter: moe, value: 1}, {value: 0.3}]")
    world.warned("the rule matches no tensor: `*moe*`", text=text)


def test_a_chain_of_recipes(world: World) -> None:
    text = f"name: first\n{MERGE}---\n{MERGE.replace('model: math', 'model: first')}"
    assert world.run(text).exit_code == 0
    assert (world.out / "model.safetensors").exists()


def test_paths_from_the_working_folder(world: World) -> None:
    """mergekit spells them so, wherever the recipe is."""
    (world.folder / "cards").mkdir()
    Path("cards/merge.yml").write_text(MERGE)
    assert world.call("run", "cards/merge.yml", "-o", world.out).exit_code == 0
