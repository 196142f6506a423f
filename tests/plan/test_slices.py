"""Layers stacked anew: which tensors stand where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.build import build, models
from mergekit_lite.plan.explain import explain
from mergekit_lite.plan.types import Job, Plan
from tests.plan.hollow import llama, llama_config, recipe, write, write_adapter

TWO = "base: base\nexperts: {math: {model: math}, code: {model: code}}\n"


@pytest.fixture
def deep(root: Path) -> Path:
    """Models of 4 layers (base, math, code) and 6 layers (chat)."""
    for name, layers in (("base", 4), ("math", 4), ("code", 4), ("chat", 6)):
        write(root / name, llama(layers), llama_config(layers))
    return root


def planned(root: Path, text: str, head: str = TWO) -> Plan:
    return build(recipe(root, head + text))


def refused(root: Path, text: str, head: str = TWO) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        planned(root, text, head)
    return [str(problem) for problem in caught.value.problems]


def up(made: Plan, layer: int) -> Job:
    return next(j for j in made.jobs if j.name == f"model.layers.{layer}.mlp.up_proj.weight")


def test_taken_layers_are_copies_of_the_layers_they_come_from(deep: Path) -> None:
    made = planned(deep, "slices: [{take: base, layers: 0-2}, {take: math, layers: '1,1,3'}]")
    assert made.layers == 6
    froms = [(up(made, o).kind, up(made, o).reads[0].source, up(made, o).reads[0].name)
             for o in range(6)]  # fmt: skip
    wanted = [("base", 0), ("base", 1), ("base", 2), ("math", 1), ("math", 1), ("math", 3)]
    assert froms == [("copy", s, f"model.layers.{own}.mlp.up_proj.weight") for s, own in wanted]
    assert [row["sources"] for row in made.layer_map] == [{s: own} for s, own in wanted]
    assert [up(made, o).layer for o in range(6)] == list(range(6))
    names = [job.name for job in made.jobs]
    assert len(names) == len(set(names)) == 3 + 6 * 4
    assert made.config["num_hidden_layers"] == 6


def test_without_steps_all_else_is_the_bases(deep: Path) -> None:
    made = planned(deep, "slices: [{take: math, layers: 0-1}]")
    outside = [job for job in made.jobs if job.layer is None]
    assert {(job.kind, job.reads[0].source) for job in outside} == {("copy", "base")}
    assert len(outside) == 3


def test_steps_merge_the_layers_that_stand_side_by_side(deep: Path) -> None:
    text = """
slices:
  - {layers: {base: 0-1, math: 2-3}, steps: [{ties: {density: 0.5}}]}
  - {layers: {math: 1-2, code: 0-1}, steps: [{linear: {weights: {math: 1, code: 3}}}]}
"""
    made = planned(deep, text)
    first = up(made, 1)
    assert first.base is not None
    assert first.base.name == "model.layers.1.mlp.up_proj.weight"
    assert [read.name for read in first.reads] == ["model.layers.3.mlp.up_proj.weight"]
    second = up(made, 3)
    assert second.base is None
    assert [(read.source, read.name) for read in second.reads] == [
        ("math", "model.layers.2.mlp.up_proj.weight"),
        ("code", "model.layers.1.mlp.up_proj.weight"),
    ]


def test_the_base_lies_under_experts_that_agree_on_their_layers(deep: Path) -> None:
    text = "slices: [{layers: {math: 2-3, code: 2-3}}]\nsteps: [{ties: {density: 0.5}}]"
    job = up(planned(deep, text), 0)
    assert job.base is not None
    assert job.base.name == "model.layers.2.mlp.up_proj.weight"
    problems = refused(deep, text.replace("code: 2-3", "code: 1-2"))
    assert "slice 1 has no layers of `base`, which is wanted here" in problems[0]
    assert "recipe.yaml:3:" in problems[0]


def test_rules_and_gradients_go_by_output_layers(deep: Path) -> None:
    text = """
slices: [{take: base, layers: 0-1}, {layers: {base: 0-2, math: 0-2}}]
steps: [{task_arithmetic: {}}]
rules:
  - {match: {layers: "4"}, take: base}
  - {match: {layers: "2"}, set: {weight: 7}}
"""
    head = "base: base\nexperts: {math: {model: math, weight: [0, 1]}}\n"
    made = planned(deep, text, head)
    assert up(made, 4).kind == "copy"
    assert up(made, 4).reads[0].name == "model.layers.2.mlp.up_proj.weight"
    assert up(made, 2).steps[-1].params["weights"] == [7]
    assert up(made, 3).steps[-1].params["weights"] == [0.75]
    (problem,) = refused(deep, text.replace('"4"', '"5"'), head)
    assert "the model has 5 layers (0-4), asked 5" in problem


def test_a_rule_may_scale_what_a_slice_passes_on(deep: Path) -> None:
    text = """
slices:
  - {take: base, layers: 0-3}
  - {layers: {base: 2-3}, steps: [{passthrough: {source: base}}]}
rules: [{match: {name: "*down_proj*", layers: "4-5"}, set: {passthrough.scale: 0}}]
"""
    made = planned(deep, text)
    down = next(j for j in made.jobs if j.name == "model.layers.5.mlp.down_proj.weight")
    assert (down.kind, down.steps[0].params["scale"]) == ("merge", 0)
    assert up(made, 5).kind == "copy"


def test_an_adapter_takes_the_bases_layers_along(deep: Path) -> None:
    shapes = {f"model.layers.{n}.mlp.up_proj": (64, 32) for n in range(4)}
    write_adapter(deep / "lora", shapes)
    head = "base: base\nexperts: {lora: {lora: lora}}\n"
    made = planned(deep, "slices: [{take: base, layers: 0-3}, {take: lora, layers: 1-2}]", head)
    job = up(made, 5)
    assert job.reads[0].lora is not None
    assert "layers.2.mlp.up_proj" in job.reads[0].lora.a
    assert job.base is not None
    assert job.base.name == "model.layers.2.mlp.up_proj.weight"
    down = next(j for j in made.jobs if j.name == "model.layers.5.mlp.down_proj.weight")
    assert (down.kind, down.reads[0].name) == ("copy", "model.layers.2.mlp.down_proj.weight")


def test_experts_may_be_deeper_than_the_base(deep: Path) -> None:
    head = "base: base\nexperts: {chat: {model: chat}}\n"
    made = planned(deep, "slices: [{take: base, layers: 0-}, {take: chat, layers: 4-}]", head)
    assert up(made, 5).reads[0].name == "model.layers.5.mlp.up_proj.weight"
    assert made.inputs["chat"].missing == ()
    assert made.inputs["chat"].extra == ()


def test_everything_wrong_with_slices_is_told_at_once(deep: Path) -> None:
    text = """
slices:
  - {take: base, layers: 0-40}
  - {layers: {base: 0-1, math: 1-3}}
"""
    first, second = refused(deep, text + "steps: [{slerp: {t: 0.5, weights: {math: 1}}}]")[:2]
    assert "recipe.yaml:5:" in first
    assert "`base` has 4 layers (0-3), asked 0-40" in first
    assert "runs of different length: `base` 2, `math` 3 layers" in second


def test_layers_of_another_width_are_refused(deep: Path) -> None:
    write(deep / "math", llama(4, hidden=48), llama_config(4, hidden=48))
    (problem,) = refused(deep, "slices: [{take: base, layers: 0-1}, {take: math, layers: 2-3}]")
    assert "layers of `math` have other shapes than those of the base" in problem
    assert "hidden_size 48 (base 32)" in problem
    assert "`model.layers.2.mlp.up_proj.weight` 64x48 (base 64x32)" in problem


def test_weights_for_an_input_without_layers_are_refused(deep: Path) -> None:
    text = "slices: [{layers: {math: 0-1}}]\nsteps: [{linear: {weights: {math: 1, code: 1}}}]"
    (problem,) = refused(deep, text)
    assert "`linear` weighs `code`, of which the slice has no layers" in problem


def test_a_rule_cannot_take_what_the_slice_does_not_have(deep: Path) -> None:
    text = "slices: [{take: math, layers: 0-1}]\nrules: [{match: {role: norm}, take: code}]"
    (problem,) = refused(deep, text)
    assert "slice 1 has no layers of `code`" in problem


def test_several_stacks_must_be_told_apart(root: Path) -> None:
    tensors = {
        f"model.{side}.layers.{n}.fc1.weight": ("F32", (4, 4))
        for side in ("encoder", "decoder")
        for n in range(2)
    }
    config = {"model_type": "pair", "encoder_layers": 2, "decoder_layers": 2}
    write(root / "base", tensors, config)
    head = "base: base\n"
    (problem,) = refused(root, "slices: [{take: base, layers: 0-1}]", head)
    assert "several stacks of layers: `model.decoder.layers`, `model.encoder.layers`" in problem
    text = "slices: [{take: base, layers: '0,1,1', stack: decoder.layers}]"
    made = planned(root, text, head)
    assert made.config["decoder_layers"] == 3
    assert "encoder_layers" not in made.config
    assert len(made.jobs) == 5


def test_layers_past_the_counted_ones_move_to_the_new_end(root: Path) -> None:
    write(root / "base", llama(3), llama_config(2))
    made = planned(root, "slices: [{take: base, layers: '0,1,0'}]", "base: base\n")
    assert up(made, 3).reads[0].name == "model.layers.2.mlp.up_proj.weight"
    assert made.config["num_hidden_layers"] == 3
    assert len(made.layer_map) == 3


def test_a_config_that_counts_other_layers_than_are_stored_is_refused(root: Path) -> None:
    write(root / "base", llama(3), llama_config(5))
    (problem,) = refused(root, "slices: [{take: base, layers: 0-2}]", "base: base\n")
    assert "`base` stores 3 layers, its config says 5" in problem


def test_explain_names_the_slice(deep: Path) -> None:
    loaded = recipe(deep, TWO + "slices: [{take: base, layers: 0-1}, {take: math, layers: 2-3}]")
    found = explain(build(loaded), loaded, "model.layers.3.mlp.up_proj.weight", models(loaded))
    assert found["decision"]["why"] == "slice 2"
    assert found["reads"][0]["tensor"] == "model.layers.3.mlp.up_proj.weight"


def test_a_plan_with_slices_survives_json(deep: Path) -> None:
    made = planned(deep, "slices: [{take: base, layers: 0-1}, {take: math, layers: 2-3}]")
    assert Plan.from_json(made.to_json()) == made


@pytest.mark.parametrize(("layers", "says"), [("1-2", "layer 1 of"), ("0,0-2", "layer 0 of")])
def test_a_first_layer_that_serves_all_others_stays_the_first(
    root: Path, layers: str, says: str
) -> None:
    bias = {"model.layers.0.attn.relative_attention_bias.weight": ("BF16", (8, 2))}
    write(root / "base", llama(3) | bias, llama_config(3))
    problem = refused(root, f"slices: [{{take: base, layers: '{layers}'}}]", "base: base\n")[0]
    assert f"{says} `base` cannot be layer" in problem
    assert "relative_attention_bias.weight` of the first layer serves all others" in problem
    made = planned(root, "slices: [{take: base, layers: '0-2,1'}]", "base: base\n")
    assert made.layers == 4


def test_the_plan_shows_runs_of_layers(deep: Path) -> None:
    from mergekit_lite.cli.plan import layers_text

    text = "slices: [{take: base, layers: 0-2}, {layers: {base: 0-1, math: 2-3}}, {take: math, layers: '1,1'}]"  # noqa: E501
    lines = layers_text(planned(deep, text + "\nsteps: [{ties: {}}]")).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["0-2", "base", "0-2"],
        ["3-4", "base", "0-1,", "math", "2-3"],
        ["5", "math", "1"],
        ["6", "math", "1"],
    ]
