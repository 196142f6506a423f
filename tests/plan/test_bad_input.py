"""Inputs that people really feed in, and what they are told; nothing is merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergekit_lite.errors import DataError, RecipeError, SourceError
from mergekit_lite.plan.build import build, models
from mergekit_lite.recipe import RecipeStep
from tests.plan.hollow import hollow, llama, llama_config, recipe, write, write_adapter

TWO = "base: base\nexperts: {math: {model: math}, code: {model: code}}\n"
TIES = TWO + "steps: [ties]\n"
Q0 = "model.layers.0.self_attn.q_proj.weight"


def refused(root: Path, text: str, kind: type = RecipeError) -> list[str]:
    """Plan and return the problems as text."""
    with pytest.raises(kind) as caught:
        build(recipe(root, text))
    assert type(caught.value) is kind
    return [str(problem) for problem in caught.value.problems]


def warned(root: Path, text: str) -> str:
    return "\n".join(build(recipe(root, text)).warnings)


def test_all_problems_of_all_models_are_told_at_once(root: Path) -> None:
    write(root / "math", llama(hidden=48), llama_config(hidden=48))
    write(root / "code", {name: fact for name, fact in llama().items() if "layers.1" not in name})
    text = TIES + "rules: [{match: '*.nothing', take: base}, {match: {layers: 0-40}, take: base}]"
    problems = refused(root, text)
    assert len(problems) == 4
    assert [problem.split(":")[0] for problem in problems] == ["recipe.yaml"] * 4
    every = "\n".join(problems)
    for part in ("other shapes", "1 layer (0-0)", "matches no tensor", "asked 0-40"):
        assert part in every


def test_missing_models_are_all_named_with_their_places(root: Path) -> None:
    text = "base: base\nexperts: {a: {model: nowhere}, b: {model: math}, c: {model: gone}}\n"
    problems = refused(root, text + "steps: [ties]", SourceError)
    assert len(problems) == 2
    assert "recipe.yaml:2" in problems[0]
    assert "nowhere" in problems[0]
    assert "gone" in problems[1]


def test_a_missing_model_does_not_hide_a_misfit(root: Path) -> None:
    write(root / "math", llama(3), llama_config(3))
    text = "base: base\nexperts: {a: {model: nowhere}, math: {model: math}}\nsteps: [ties]"
    problems = refused(root, text, SourceError)
    assert len(problems) == 2
    assert "3 layers (0-2)" in problems[1]


def test_damaged_headers_of_several_models(root: Path) -> None:
    for name in ("math", "code"):
        (root / name / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0oops")
    problems = refused(root, TIES, DataError)
    assert ["math" in problems[0], "code" in problems[1]] == [True, True]


def test_missing_tensors_are_grouped(root: Path) -> None:
    kept = {name: fact for name, fact in llama(8).items() if "mlp" not in name}
    write(root / "base", llama(8), llama_config(8))
    write(root / "code", llama(8), llama_config(8))
    write(root / "math", kept, llama_config(8))
    (problem,) = refused(root, TIES)
    assert "expert `math` lacks tensors that the base has" in problem
    assert problem.count("`model.layers") == 5
    assert "and 11 more" in problem
    assert "allow_missing" in problem


def test_a_missing_tensor_that_is_not_read_does_not_matter(root: Path) -> None:
    write(root / "math", {name: fact for name, fact in llama().items() if name != Q0})
    made = build(recipe(root, TIES + f"rules: [{{match: {Q0}, take: base}}]"))
    assert made.inputs["math"].missing == (Q0,)


def test_a_pattern_of_allow_missing_that_matches_nothing(root: Path) -> None:
    assert "recipe.yaml:4:17: `*.nothing` matches no tensor of the base" in warned(
        root, TIES + "allow_missing: ['*.nothing']"
    )


def test_extra_tensors_are_refused_or_dropped(root: Path) -> None:
    write(root / "math", llama() | {"score.weight": ("BF16", (2, 32))})
    (problem,) = refused(root, TIES)
    assert "expert `math` has 1 tensor that the base lacks: `score.weight`" in problem
    made = build(recipe(root, TIES + "extra: drop"))
    assert made.inputs["math"].extra == ("score.weight",)
    assert "dropped: `score.weight`" in "\n".join(made.warnings)


def test_other_sizes_are_one_line_that_compares_the_configs(root: Path) -> None:
    write(
        root / "math",
        llama(hidden=48, intermediate=96),
        llama_config(hidden=48, intermediate=96),
    )
    (problem,) = refused(root, TIES)
    sizes = "hidden_size 48 (base 32), intermediate_size 96 (base 64)"
    assert f"expert `math` has other shapes than the base ({sizes}): " in problem
    assert "`model.embed_tokens.weight` 64x48 (base 64x32)" in problem
    assert "and 6 more" in problem


def test_another_vocabulary_is_told_apart_from_other_sizes(root: Path) -> None:
    write(root / "math", llama(vocab=80), llama_config(vocab=80))
    (problem,) = refused(root, TIES)
    assert "expert `math` has another vocabulary than the base" in problem
    assert "`model.embed_tokens.weight` 80x32 (base 64x32)" in problem
    rules = "rules: [{match: {role: embedding}, take: base}, {match: {role: head}, take: base}]"
    assert build(recipe(root, TIES + rules)).jobs


def test_another_depth(root: Path) -> None:
    write(root / "math", llama(3), llama_config(3))
    (problem,) = refused(root, TIES)
    assert "expert `math` has 3 layers (0-2), the base 2 layers (0-1)" in problem


def test_another_architecture(root: Path) -> None:
    write(root / "math", llama(), llama_config() | {"model_type": "phi"})
    (problem,) = refused(root, TIES)
    assert "not mergeable: expert `math` is a `phi` model, the base a `llama` model" in problem


def test_other_settings_are_warned_of(root: Path) -> None:
    write(root / "base", config=llama_config() | {"rope_theta": 10000.0})
    write(root / "math", config=llama_config() | {"rope_theta": 500000.0})
    assert "rope_theta 500000.0 (base 10000.0)" in warned(root, TIES)


def test_layers_past_the_end(root: Path) -> None:
    (problem,) = refused(root, TIES + "rules: [{match: {layers: 1-40}, take: base}]")
    assert "recipe.yaml:4:9" in problem
    assert "the model has 2 layers (0-1), asked 1-40" in problem


def test_a_rule_that_matches_nothing(root: Path) -> None:
    (problem,) = refused(root, TIES + "rules: [{match: '*.rotary_emb.*', drop: true}]")
    assert "the rule matches no tensor: `*.rotary_emb.*`" in problem


@pytest.mark.parametrize("which", ["base", "math"])
def test_quantised_inputs(root: Path, which: str) -> None:
    config = llama_config() | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    write(root / which, config=config)
    (problem,) = refused(root, TIES)
    assert f"`{which}` is quantised (gptq" in problem
    assert "16-bit" in problem


def test_every_quantised_input_is_named(root: Path) -> None:
    config = llama_config() | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    for name in ("base", "math"):
        write(root / name, config=config)
    first, second = refused(root, TIES)
    assert "`base` is quantised" in first
    assert "`math` is quantised" in second


def test_fp8_inputs(root: Path) -> None:
    write(root / "math", llama() | {Q0: ("F8_E4M3", (32, 32))})
    (problem,) = refused(root, TIES)
    assert "fp8" in problem
    assert Q0 in problem


def test_f64_is_warned_of(root: Path) -> None:
    write(root / "math", llama() | {Q0: ("F64", (32, 32))})
    assert f"`math` has F64 tensors, computed in fp32: `{Q0}`" in warned(root, TIES)


def test_a_lora_given_as_a_model_and_a_model_given_as_a_lora(root: Path) -> None:
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    text = "base: base\nexperts: {a: {model: lora}, b: {lora: math}}\nsteps: [ties]"
    first, second = refused(root, text)
    assert "is a LoRA of org/base" in first
    assert "lora: lora" in first
    assert "whole model, not a LoRA" in second


def test_an_adapter_of_another_model(root: Path) -> None:
    write_adapter(
        root / "lora",
        {"model.layers.0.self_attn.q_proj": (48, 32), "model.layers.9.mlp.up_proj": (64, 32)},
    )
    text = "base: base\nexperts: {a: {lora: lora}}\nsteps: [ties]"
    extra, shape = refused(root, text)
    assert "`model.layers.9.mlp.up_proj.weight`" in extra
    assert f"`{Q0}` 48x32 (base 32x32)" in shape
    (problem,) = refused(root, text + "\nextra: drop")
    assert f"`{Q0}` 48x32 (base 32x32)" in problem


def test_an_adapter_that_fits_nothing_is_refused_even_where_strangers_are_dropped(
    root: Path,
) -> None:
    write_adapter(root / "lora", {"transformer.h.0.attn.c_attn": (48, 32)})
    text = "base: base\nexperts: {a: {lora: lora}}\nsteps: [ties]"
    for more in ("", "\nextra: drop"):
        (problem,) = refused(root, text + more)
        assert "fits nothing in the base: none of its 1 tensor" in problem
        assert "trained on (`org/base`)" in problem


def test_an_adapter_that_names_another_base_is_warned_of(root: Path) -> None:
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    text = "base: base\nexperts: {a: {lora: lora}}\nsteps: [ties]"
    file = root / "lora" / "adapter_config.json"
    file.write_text(file.read_text().replace("org/base", "org/Llama-9"))
    assert "trained on" not in warned(root, text)
    for named, told in (("else/other", True), ("mine/llama-9", False)):
        config = {**llama_config(), "_name_or_path": named}
        (root / "base" / "config.json").write_text(json.dumps(config))
        assert ("trained on `org/Llama-9`" in warned(root, text)) == told


def test_a_head_that_only_the_expert_has(root: Path) -> None:
    for name in ("base", "code"):
        write(root / name, llama(tied=True), llama_config(tied=True))
    (problem,) = refused(root, TIES)
    assert "expert `math` has a head of its own (`lm_head.weight`)" in problem
    assert build(recipe(root, TIES + "extra: drop")).inputs["math"].extra == ("lm_head.weight",)


def test_a_stored_copy_of_a_tied_head_is_left_out(root: Path) -> None:
    for name in ("base", "code"):
        write(root / name, llama(tied=True), llama_config(tied=True))
    write(root / "math", llama(), llama_config(tied=True))
    made = build(recipe(root, TIES))
    assert all(job.name != "lm_head.weight" for job in made.jobs)
    assert "ties it to its embedding; it is left out" in "\n".join(made.warnings)


def test_an_expert_without_a_head_that_says_it_has_one(root: Path) -> None:
    write(root / "math", llama(tied=True), llama_config(tied=False))
    (problem,) = refused(root, TIES)
    assert "lacks tensors that the base has: `lm_head.weight`" in problem


def test_non_float_tensors_that_differ_are_warned_of(root: Path) -> None:
    for name, count in (("base", 8), ("math", 8), ("code", 9)):
        write(root / name, llama() | {"model.positions": ("I64", (count,))})
    warnings = warned(root, TIES)
    assert "expert `code` differs in tensors that are not floats" in warnings
    assert "`math`" not in warnings


def test_floats_against_integers(root: Path) -> None:
    for name in ("base", "code"):
        write(root / name, llama() | {"model.shift": ("BF16", (32,))})
    write(root / "math", llama() | {"model.shift": ("I16", (32,))})
    (problem,) = refused(root, TIES)
    assert "`model.shift` I16 (base BF16)" in problem


@pytest.mark.parametrize("dtype", ["I8", "U8", "I16", "I32", "F8_E5M2"])
def test_codes_that_nothing_explains(root: Path, dtype: str) -> None:
    write(root / "math", llama() | {Q0: (dtype, (32, 32))})
    (problem,) = refused(root, TIES)
    assert f"nothing says what its codes stand for: `{Q0}` is {dtype}" in problem
    assert "16-bit" in problem


def test_own_steps_before_whole_weights(root: Path) -> None:
    text = """base: base
experts: {math: {model: math, steps: [dare]}, code: {model: code}}
steps: [ties]
rules: [{match: {layers: 1}, steps: [linear]}, {match: {role: norm}, take: math}]
"""
    (problem,) = refused(root, text)
    assert "expert `math` has steps of its own" in problem
    assert "recipe.yaml:4" in problem


def test_passthrough_of_several_experts_must_name_one(root: Path) -> None:
    # A recipe that is made in memory has not been through the checks of `load`.
    loaded = recipe(root, TIES)
    loaded = loaded.model_copy(update={"steps": (RecipeStep(op="passthrough"),)})
    with pytest.raises(RecipeError) as caught:
        build(loaded)
    problem = str(caught.value)
    assert "`passthrough` takes 1 input, here are 2: math, code" in problem
    assert "source: NAME" in problem


def test_a_preset_that_does_not_fit_the_depth(root: Path) -> None:
    text = "steps: [{layer_swap: {from: math, into: code, bottom: 5, top: 2}}]"
    (problem,) = refused(root, TWO + text)
    assert "the model has 2" in problem


def test_a_gradient_that_leaves_its_range(root: Path) -> None:
    text = "steps: [{linear: {weights: {math: [0, 1], code: [0, -1]}}}]"
    (problem,) = refused(root, TWO + text)
    assert "linear" in problem or "weights" in problem


def test_everything_dropped(root: Path) -> None:
    (problem,) = refused(root, TIES + "rules: [{match: '*', drop: true}]")
    assert "nothing is left to write" in problem


def test_a_dropped_head_of_an_untied_model_is_warned_of(root: Path) -> None:
    assert "loaders will make up a head" in warned(
        root, TIES + "rules: [{match: lm_head.weight, drop: true}]"
    )


def test_an_empty_base(root: Path) -> None:
    hollow(root / "base" / "model.safetensors", {})
    (problem,) = refused(root, TIES)
    assert "no tensors" in problem


def test_index_oddities_are_passed_on(root: Path) -> None:
    write(root / "math", shards=2)
    index = root / "math" / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["metadata"]["total_size"] = 7
    index.write_text(json.dumps(raw))
    assert "total_size 7" in warned(root, TIES)


def test_models_alone_tell_what_is_missing(root: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        models(recipe(root, "base: base\nexperts: {a: {model: nowhere}}\nsteps: [ties]"))
