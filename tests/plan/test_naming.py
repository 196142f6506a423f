"""Experts whose tensors have other names, or that are meant for a part of the base."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_lite.errors import RecipeError
from mergekit_lite.plan.build import build
from mergekit_lite.plan.types import Job, Plan
from tests.plan.hollow import Tensors, llama, llama_config, recipe, write, write_adapter

HEAD = "base: base\nexperts: {math: {model: math}}\nsteps: [task_arithmetic]\n"
Q0 = "model.layers.0.self_attn.q_proj.weight"


def planned(root: Path, text: str = HEAD) -> Plan:
    return build(recipe(root, text))


def refused(root: Path, text: str = HEAD) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        planned(root, text)
    return [str(problem) for problem in caught.value.problems]


def rows(made: Plan) -> dict[str, Job]:
    return {job.name: job for job in made.jobs}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n: n.removeprefix("model."), "its names lack the prefix `model.`"),
        (lambda n: f"base_model.{n}", "have the prefix `base_model.`"),
        (
            lambda n: n.replace("model.", "transformer.", 1),
            "begin with `transformer.` where the base's begin with `model.`",
        ),
    ],
)
def test_another_prefix_is_matched_and_told(root: Path, change, says: str) -> None:
    write(root / "math", {change(name): fact for name, fact in llama().items()})
    made = planned(root)
    for name, job in rows(made).items():
        assert (job.kind, job.reads[0].name) == ("merge", change(name))
    (warning,) = made.warnings
    assert "recipe.yaml:2" in warning
    assert says in warning
    assert "tensors matched that way" in warning
    assert made.inputs["math"].matched == len(llama())
    assert made.inputs["math"].extra == ()


def test_a_prefix_that_fits_two_towers_is_refused(root: Path) -> None:
    towers = {f"{tower}.{name}": fact for tower in ("a", "b") for name, fact in llama().items()}
    write(root / "base", towers)
    first = refused(root)[0]
    assert "its names fit the base's in several ways: `*: a.*`, `*: b.*`" in first
    text = HEAD.replace("{model: math}", "{model: math, scope: b}")
    made = rows(planned(root, text))
    assert made[f"b.{Q0}"].reads[0].name == Q0
    assert made[f"a.{Q0}"].kind == "copy"


def test_heads_of_other_names_are_no_prefix(root: Path) -> None:
    write(root / "base", llama() | {"classifier.weight": ("BF16", (2, 32))})
    write(root / "math", llama() | {"score.weight": ("BF16", (2, 32))})
    problems = refused(root)
    assert any("`score.weight`" in problem for problem in problems)


def test_rename_by_pattern(root: Path) -> None:
    write(root / "math", {n.replace("self_attn", "attention"): f for n, f in llama().items()})
    text = HEAD.replace(
        "{model: math}", "{model: math, rename: {'*.attention.*': '*.self_attn.*'}}"
    )
    made = rows(planned(root, text))
    assert made[Q0].reads[0].name == Q0.replace("self_attn", "attention")


def test_everything_wrong_with_renames(root: Path) -> None:
    rename = "rename: {'nothing.*': 'x.*', 'model.norm.weight': lm_head.weight}"
    first, second = refused(root, HEAD.replace("{model: math}", f"{{model: math, {rename}}}"))
    assert "`nothing.*` renames no tensor of expert `math`" in first
    assert "recipe.yaml:2:" in first
    assert "would all be called `lm_head.weight`" in second
    (third,) = refused(root, HEAD.replace("{model: math}", "{model: math, rename: {'a': 'b*'}}"))
    assert "`b*` has more wildcards than `a`" in third


def vlm() -> Tensors:
    text = {n.replace("model.", "model.language_model.", 1): f for n, f in llama().items()}
    return {
        **{f"model.visual.blocks.{n}.mlp.fc1.weight": ("BF16", (32, 32)) for n in range(3)},
        "model.visual.merger.weight": ("BF16", (32, 32)),
        **text,
    }


def vlm_config() -> dict[str, object]:
    text = {**llama_config(), "model_type": "seer_text"}
    return {"model_type": "seer", "text_config": text, "vision_config": {"depth": 3}}


@pytest.mark.parametrize("step", ["task_arithmetic", "linear: {normalize: false}"])
def test_a_language_model_into_the_text_tower(root: Path, step: str) -> None:
    write(root / "base", vlm(), vlm_config())
    text = HEAD.replace("{model: math}", "{model: math, scope: [model.language_model, lm_head]}")
    text = text.replace("[task_arithmetic]", f"[{step}]")
    made = planned(root, text.replace("model: math,", "model: math, weight: 0.5,"))
    for name, job in rows(made).items():
        if name.startswith("model.visual"):
            assert (job.kind, job.reads[0].source) == ("copy", "base")
        else:
            assert job.kind == "merge"
            assert job.reads[0].name == name.replace("language_model.", "")
    told = "\n".join(made.warnings)
    assert "expert `math` is a `llama` model, the base a `seer` model" in told
    assert made.inputs["math"].missing == ()


def test_without_a_scope_it_is_refused_with_the_scope_to_write(root: Path) -> None:
    config = vlm_config() | {"model_type": "llama"}
    write(root / "base", vlm(), config)
    (problem,) = refused(root)
    assert "expert `math` lacks tensors that the base has: `model.visual." in problem
    assert "write `scope: model.language_model` for it" in problem


def test_what_an_expert_has_beyond_its_scope_is_told(root: Path) -> None:
    made = planned(root, HEAD + "scope: model.layers.1\n")
    assert {n for n, job in rows(made).items() if job.kind == "merge"} == {
        name for name in llama() if name.startswith("model.layers.1.")
    }
    assert "has 7 tensors beyond its scope, left as in the base" in "\n".join(made.warnings)


def test_a_scope_that_matches_nothing(root: Path) -> None:
    (problem,) = refused(root, HEAD + "scope: ['model.layer.*']\n")
    assert "the scope `model.layer.*` matches no tensor of the base" in problem
    assert "recipe.yaml:4:9" in problem


def test_an_adapter_with_other_names(root: Path) -> None:
    write(root / "base", vlm(), vlm_config())
    shapes = {f"model.layers.{n}.mlp.up_proj": (64, 32) for n in range(2)}
    write_adapter(root / "lora", shapes)
    made = planned(root, HEAD.replace("{model: math}", "{lora: lora}"))
    job = rows(made)["model.language_model.layers.1.mlp.up_proj.weight"]
    assert job.reads[0].lora is not None
    assert "layers.1.mlp.up_proj" in job.reads[0].lora.a


def test_slices_of_an_expert_with_another_prefix(root: Path) -> None:
    deep = {name.removeprefix("model."): fact for name, fact in llama(4).items()}
    write(root / "math", deep, llama_config(4))
    made = planned(root, HEAD + "slices: [{take: base, layers: 0-1}, {take: math, layers: 2-}]")
    job = rows(made)["model.layers.3.mlp.up_proj.weight"]
    assert (job.kind, job.reads[0].name) == ("copy", "layers.3.mlp.up_proj.weight")
