"""Plans of recipes with stages: what is told of them, before any weight is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_lite.cli.plan import inputs_text, stages_text
from mergekit_lite.errors import DataError, MergekitLiteError, RecipeError, SourceError
from mergekit_lite.plan.build import build, prepare
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.explain import explain, explain_text
from mergekit_lite.plan.stages import FOR_MEMORY, leaf_models, within_memory
from mergekit_lite.plan.types import Plan
from tests.plan.hollow import llama, llama_config, recipe, write, write_adapter

UP = "model.layers.0.mlp.up_proj.weight"
TWO = """base: '@inner'
experts: {code: {model: code}}
steps: [{ties: {density: 0.5}}]
stages:
  inner: {base: base, experts: {math: math}, steps: [task_arithmetic]}
"""


def planned(root: Path, text: str = TWO) -> Plan:
    return build(recipe(root, text))


def refused(root: Path, text: str, kind: type[MergekitLiteError] = RecipeError) -> list[str]:
    with pytest.raises(kind) as caught:
        planned(root, text)
    return [str(problem) for problem in caught.value.problems]


def test_the_result_keeps_the_dtypes_of_the_first_base(root: Path) -> None:
    plan = planned(root)
    assert {job.dtype for job in plan.jobs} == {"BF16"}
    assert {job.dtype for job in plan.stages["inner"].jobs} == {"F32"}
    assert plan.written == {}
    assert "torch_dtype" not in plan.config or plan.config["torch_dtype"] == "bfloat16"
    named = TWO.replace("steps: [task_arithmetic]", "steps: [linear], output: {dtype: float16}")
    assert {job.dtype for job in planned(root, named).jobs} == {"F16"}


def test_leaves_are_the_files_that_are_read(root: Path) -> None:
    plan, models = prepare(recipe(root, TWO))
    assert set(plan.inputs) == {"base", "code"}
    assert set(plan.leaves) == {"code", "inner/base", "inner/math"} == set(leaf_models(models))
    assert plan.inputs["base"].files == {}
    assert plan.inputs["base"].revision == plan.stages["inner"].content_digest()


def test_a_change_in_a_stage_changes_the_plan(root: Path) -> None:
    first = planned(root)
    other = planned(root, TWO.replace("[task_arithmetic]", "[{task_arithmetic: {lambda: 2.0}}]"))
    assert first.content_digest() != other.content_digest()
    assert first.content_digest() == planned(root).content_digest()


def test_the_tables_say_what_a_stage_costs(root: Path) -> None:
    plan = planned(root)
    assert "@inner  stage" in inputs_text(plan)
    assert "inner/math  math" in inputs_text(plan)
    assert "streams through, no disk" in stages_text(plan, full=False)
    kept = planned(root, TWO.replace("steps: [task", "keep: true, steps: [task"))
    size = sum(shard.nbytes for shard in kept.stages["inner"].shards)
    assert f"written first, {size / 1000:.1f} kB of disk: keep: true" in stages_text(
        kept, full=False
    )
    cost, streamed = (estimate(p, out=root / "out") for p in (kept, plan))
    assert cost.disk_needed == streamed.disk_needed + size


@pytest.mark.parametrize("where", ["inner", "outer"])
def test_statistics_of_the_whole_model_have_it_written(root: Path, where: str) -> None:
    wide = "[{ties: {density: 0.5, scope: model}}]"
    old = "[task_arithmetic]" if where == "inner" else "[{ties: {density: 0.5}}]"
    plan = planned(root, TWO.replace(old, wide))
    assert set(plan.written) == {"inner"}
    assert "whole model" in plan.written["inner"]


def test_a_row_tells_of_the_stage_it_reads(root: Path) -> None:
    loaded = recipe(root, TWO)
    found = explain(build(loaded), loaded, UP)
    assert found["reads"][0]["stage"] == "inner"
    text = explain_text(found)
    assert f"base (base): {UP}, computed by the stage `inner` from 8192 bytes: F32 64x32" in text


def test_one_stage_twice_is_one_model_and_its_base_another(root: Path) -> None:
    text = TWO.replace("{code: {model: code}}", "{a: '@inner', b: base, code: code}")
    plan = planned(root, text)
    assert any("expert `a` is the base" in warning for warning in plan.warnings)
    assert not any("expert `b` is the base" in warning for warning in plan.warnings)


def test_problems_and_warnings_name_their_stage(root: Path) -> None:
    write(root / "math", llama() | {UP: ("BF16", (48, 32))})
    (problem,) = refused(root, TWO)
    assert problem.startswith("recipe.yaml:5") or ":5:" in problem
    assert "stage `inner`: expert `math` has other shapes than the base" in problem
    write(root / "math", llama() | {UP: ("F64", (64, 32))})
    assert any(
        w.startswith("stage `inner`: `math` has F64 tensors") for w in planned(root).warnings
    )


def test_problems_of_stages_and_of_the_rest_come_together(root: Path) -> None:
    text = TWO.replace("math: math", "math: mth") + "rules: [{match: '*.nothing', take: base}]\n"
    text = text.replace("model: code", "model: cod")
    problems = refused(root, text, SourceError)
    assert any("stage `inner`: there is no folder or file" in problem for problem in problems)
    assert any("`cod`" in problem or "/cod" in problem for problem in problems)


def test_damage_inside_a_stage_is_damage(root: Path) -> None:
    (root / "math" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0oops")
    (problem,) = refused(root, TWO, DataError)
    assert "stage `inner`:" in problem


def test_a_stage_without_a_tensor_lacks_it(root: Path) -> None:
    text = TWO.replace("base: '@inner'", "base: base").replace("{model: code}", "{model: '@inner'}")
    text = text.replace("[task_arithmetic]}", f"[linear], rules: [{{match: {UP}, drop: true}}]}}")
    (problem,) = refused(root, text)
    assert f"expert `code` lacks tensors that the base has: `{UP}`" in problem


def test_a_stage_is_no_adapter(root: Path) -> None:
    write_adapter(root / "lora", {"model.layers.0.self_attn.q_proj": (32, 32)})
    text = TWO.replace("experts: {math: math}, steps: [task_arithmetic]",
                       "experts: {a: {lora: lora}, b: {lora: lora}}, steps: [task_arithmetic],"
                       " output: {lora: {method: cat}}")  # fmt: skip
    problems = refused(root, text)
    assert any("stage `inner`: its result is an adapter" in problem for problem in problems)


def test_quantised_settings_of_a_first_base_do_not_come_back(root: Path) -> None:
    settings = {"quant_method": "fp8"}
    write(root / "base", llama(), llama_config() | {"quantization_config": settings})
    assert planned(root).config_without == ("quantization_config",)


def test_a_stage_that_does_not_fit_into_memory_is_written_first(root: Path) -> None:
    large = {"a.weight": ("BF16", (8192, 4096))}
    for name in ("base", "math", "code"):
        write(root / name, large)
    text = TWO.replace("[task_arithmetic]", "[iso_c]").replace(
        "[{ties: {density: 0.5}}]", "[iso_c]"
    )
    whole = planned(root, text)
    streamed = estimate(whole, threads=1, refuse=False).least_memory
    ample = within_memory(whole, threads=1, max_memory=streamed)
    assert ample.written == {}
    limit = streamed * 7 // 10
    tight = within_memory(whole, threads=1, max_memory=limit)
    assert tight.written == {"inner": FOR_MEMORY}
    assert estimate(tight, threads=1, refuse=False).least_memory <= limit
    assert tight.content_digest() == whole.content_digest()
    hopeless = within_memory(whole, threads=1, max_memory=1_000_000)
    assert hopeless.written == {}
