"""Stages give what the same merges give one after the other, through files in fp32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mergekit_lite import api
from mergekit_lite.engine.events import Event
from mergekit_lite.engine.inputs import Readers
from mergekit_lite.engine.staged import Fused
from mergekit_lite.engine.supplies import supply_of
from mergekit_lite.errors import DataError, Interrupted, RecipeError
from mergekit_lite.export.stages import stage_folder
from mergekit_lite.plan.build import prepare
from mergekit_lite.plan.types import Plan, Read
from tests import quantised as q
from tests.checkpoints import perturbed, read_weights, tiny_llama

Tensors = dict[str, torch.Tensor]
F32 = "output: {dtype: float32}\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and three experts; one weight is larger than a tile."""
    folder = tmp_path_factory.mktemp("stages")
    base = tiny_llama(folder / "base", hidden=64, intermediate=96, vocab=5000)
    for seed, name in enumerate(("math", "code", "chat"), 1):
        perturbed(base, folder / name, seed=seed, scale=0.02)
    return folder


def run(folder: Path, out: Path, text: str, **options: object) -> Tensors:
    path = folder / f"{out.name}.yaml"
    path.write_text(text)
    api.run(path, out, **options)
    return read_weights(out)


def same(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def in_two(models: Path, tmp_path: Path, inner: str, outer: str) -> Tensors:
    """Run a stage by itself into a folder in fp32, then the rest on that folder."""
    tmp_path.mkdir(exist_ok=True)
    run(models, tmp_path / "one", inner + F32)
    return run(models, tmp_path / "two", outer.replace("'@inner'", str(tmp_path / "one")))


def staged(inner: str, outer: str) -> str:
    lines = "".join(f"    {line}\n" for line in inner.splitlines())
    return f"{outer}stages:\n  inner:\n{lines}"


CHAINS = {
    "fused": "[{ties: {density: 0.4}}]",
    "random": "[{dare: {density: 0.5}}, task_arithmetic]",
    "row": "[{breadcrumbs: {density: 0.5, gamma: 0.1, unit: row}}, task_arithmetic]",
    "torch": "[{magprune: {density: 0.5, epsilon: 0.2}}, task_arithmetic]",
    "whole": "[{iso_c: {}}]",
    "weights": "[{slerp: {t: 0.3}}]",
}


def inner_of(chain: str) -> str:
    experts = "{math: {model: math}}" if "slerp" in chain else "{math: math, code: {model: code}}"
    return f"base: base\nexperts: {experts}\nsteps: {chain}\n"


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("as_base", [True, False])
def test_a_stage_is_what_two_runs_give(
    models: Path, tmp_path: Path, chain: str, as_base: bool
) -> None:
    inner = inner_of(CHAINS[chain])
    outer = "base: '@inner'\nexperts: {chat: chat}\n"
    if not as_base:
        outer = "base: base\nexperts: {chat: chat, inner: {model: '@inner', weight: 0.5}}\n"
    outer += "steps: [{ties: {density: 0.3}}]\n" + F32
    found = run(models, tmp_path / "out", staged(inner, outer))
    same(found, in_two(models, tmp_path, inner, outer))
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.parametrize("chain", ["fused", "row", "torch"])
def test_its_bytes_depend_on_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n"
    text = staged(inner_of(CHAINS[chain]), outer)
    first = run(models, tmp_path / "a", text, threads=1)
    same(run(models, tmp_path / "b", text, threads=3), first)
    same(run(models, tmp_path / "c", text, max_memory=450_000_000, threads=1), first)
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    same(run(models, tmp_path / "d", text), first)


def test_any_range_of_a_result_can_be_read(models: Path) -> None:
    path = models / "ranges.yaml"
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n"
    path.write_text(staged(inner_of(CHAINS["row"]), outer))
    plan, found = prepare(api.load(path))
    readers = Readers(found, tile=4096)
    name = "model.embed_tokens.weight"
    job = next(job for job in plan.jobs if job.name == name)
    supply = supply_of(Read("base", name), job, readers)
    assert isinstance(supply, Fused)
    assert supply.dtype == "F32"
    whole = np.empty(5000 * 64, np.float32)
    supply.fill(0, whole.size, whole.view(np.uint8))
    for first, count in ((0, 1), (63, 2), (100, 9000), (whole.size - 5, 5), (4096, 4096)):
        part = np.full(count, np.nan, np.float32)
        supply.fill(first, count, part.view(np.uint8))
        np.testing.assert_array_equal(part, whole[first : first + count])
    readers.close()


def test_a_dtype_that_is_named_is_rounded_to(models: Path, tmp_path: Path) -> None:
    inner = inner_of(CHAINS["random"])
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{task_arithmetic: {lambda: 0.7}}]\n"
    found = run(models, tmp_path / "out", staged(inner + "output: {dtype: base}\n", outer))
    run(models, tmp_path / "one", inner)
    two = outer.replace("'@inner'", str(tmp_path / "one"))
    same(found, run(models, tmp_path / "two", two))
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    carried = run(models, tmp_path / "fp32", staged(inner, outer))
    assert {value.dtype for value in carried.values()} == {torch.bfloat16}
    assert any(not torch.equal(carried[name], found[name]) for name in found)


def test_stages_of_stages_and_what_is_taken_from_them(models: Path, tmp_path: Path) -> None:
    text = """base: '@second'
experts: {first: '@first', chat: chat}
steps: [{take: {source: first}}]
rules:
  - {match: {role: mlp}, take: base}
  - {match: {role: norm}, steps: [{linear: {weights: {first: 0.5, chat: 0.5}}}]}
output: {dtype: float32}
stages:
  first: {base: base, experts: {math: math}, steps: [{task_arithmetic: {lambda: 0.5}}]}
  second: {base: '@first', experts: {code: code}, steps: [{ties: {density: 0.5}}]}
"""
    found = run(models, tmp_path / "out", text)
    first = "base: base\nexperts: {math: math}\nsteps: [{task_arithmetic: {lambda: 0.5}}]\n"
    one = run(models, tmp_path / "one", first + F32)
    second = (
        f"base: {tmp_path / 'one'}\nexperts: {{code: code}}\nsteps: [{{ties: {{density: 0.5}}}}]\n"
    )
    two = run(models, tmp_path / "two", second + F32)
    chat = read_weights(models / "chat")
    for name, value in found.items():
        if ".mlp." in name:
            assert torch.equal(value, two[name])
        elif "norm" in name:
            expected = (one[name] * 0.5 + chat[name].float() * 0.5) / 1.0
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(value, one[name])


def test_integers_pass_through_all_stages(tmp_path: Path) -> None:
    for name, number in (("base", 1.0), ("math", 2.0)):
        tensors = {"a.weight": torch.full((4, 4), number), "ids": torch.arange(5) + int(number)}
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    text = """base: '@two'
steps: [{take: {source: base}}]
stages:
  one: {base: base, experts: {math: math}, steps: [task_arithmetic],
        rules: [{match: ids, take: math}]}
  two: {base: '@one', experts: {math: math}, steps: [linear]}
"""
    found = run(tmp_path, tmp_path / "out", text)
    assert torch.equal(found["ids"], torch.arange(5) + 2)
    assert torch.equal(found["a.weight"], torch.full((4, 4), 2.0))


def adapter(folder: Path, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Write a LoRA of rank 2 for one weight of 96 x 64; return its factors."""
    a, b = torch.randn(2, 64), torch.randn(96, 2)
    folder.mkdir()
    prefix = f"base_model.model.{module}"
    factors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return a, b


def test_adapters_that_are_added_up_in_a_stage(models: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        adapter(tmp_path / f"lora-{name}", "model.layers.1.mlp.up_proj")
    experts = ", ".join(
        f"{n}: {{lora: {tmp_path / f'lora-{n}'}, weight: 0.3}}" for n in ("one", "two", "three")
    )
    inner = f"base: base\nexperts: {{{experts}}}\nsteps: [task_arithmetic]\n"
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n" + F32
    found = run(models, tmp_path / "out", staged(inner, outer))
    same(found, in_two(models, tmp_path / "runs", inner, outer))


def test_an_adapter_and_codes_inside_a_stage(models: Path, tmp_path: Path) -> None:
    base, values = q.fp8_copy(models / "base", tmp_path / "fp8")
    module = "model.layers.1.mlp.up_proj"
    a, b = adapter(tmp_path / "lora", module)
    text = f"""base: '@tuned'
experts: {{again: {{lora: {tmp_path / "lora"}}}}}
steps: [task_arithmetic]
output: {{dtype: float32}}
stages:
  tuned: {{base: {base}, experts: {{l: {{lora: {tmp_path / "lora"}}}}}, steps: [task_arithmetic]}}
"""
    found = run(tmp_path, tmp_path / "out", text)
    expected = torch.from_numpy(values[f"{module}.weight"]).float() + 2 * (b @ a)
    torch.testing.assert_close(found[f"{module}.weight"], expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"


def test_a_plan_travels_with_its_stages(models: Path, tmp_path: Path) -> None:
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n"
    path = models / "travels.yaml"
    path.write_text(staged(inner_of(CHAINS["fused"]), outer))
    plan = api.plan(path)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    api.run(again, tmp_path / "out")
    same(read_weights(tmp_path / "out"), run(models, tmp_path / "two", path.read_text()))


def test_nan_in_a_stage_is_named_with_it(models: Path, tmp_path: Path) -> None:
    bad = perturbed(models / "math", tmp_path / "bad", seed=9, scale=0.0)
    tensors = read_weights(bad)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = torch.nan
    save_file(tensors, bad / "model.safetensors")
    inner = f"base: base\nexperts: {{math: {bad}}}\nsteps: [task_arithmetic]\n"
    text = staged(inner, "base: '@inner'\nexperts: {chat: chat}\nsteps: [ties]\n")
    with pytest.raises(DataError, match=rf"math: {name}: stage `inner`: 1 of .* NaN"):
        run(models, tmp_path / "out", text.replace("[ties]", "[{ties: {density: 0.3}}]"))
    found = run(
        models, tmp_path / "let", text.replace("[ties]", "[task_arithmetic]"), allow_nonfinite=True
    )
    assert torch.isnan(found[name]).any()


def test_an_interrupted_run_is_taken_up(models: Path, tmp_path: Path) -> None:
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n"
    outer += "output: {shard_size: 30kB}\n"
    text = staged(inner_of(CHAINS["random"]), outer)
    first = run(models, tmp_path / "whole", text)
    path = models / "stopped.yaml"
    path.write_text(text)

    def stop(event: Event) -> None:
        if event.kind == "shard" and event.shard == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        api.run(path, tmp_path / "out", emit=stop, threads=1)
    report = api.run(path, tmp_path / "out")
    assert report.resumed_shards >= 2
    same(read_weights(tmp_path / "out"), first)


MODEL_WIDE = "[{ties: {density: 0.3, scope: model}}]"


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_statistics_of_the_whole_model_have_a_stage_written(
    models: Path, tmp_path: Path, where: str
) -> None:
    inner = inner_of(MODEL_WIDE if where == "inside" else CHAINS["random"])
    steps = "[task_arithmetic]" if where == "inside" else MODEL_WIDE
    outer = f"base: '@inner'\nexperts: {{chat: chat}}\nsteps: {steps}\n{F32}"
    told: list[str] = []
    found = run(
        models, tmp_path / "out", staged(inner, outer), emit=lambda event: told.append(event.text)
    )
    same(found, in_two(models, tmp_path, inner, outer))
    assert any("stage `inner` is written to" in text and "whole model" in text for text in told)
    assert not stage_folder(tmp_path / "out", "inner").exists()


def test_a_stage_that_is_kept_is_a_model_and_is_used_again(models: Path, tmp_path: Path) -> None:
    inner = inner_of(CHAINS["random"])
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n" + F32
    text = staged(inner + "keep: true\n", outer)
    found = run(models, tmp_path / "out", text)
    kept = stage_folder(tmp_path / "out", "inner")
    same(read_weights(kept), run(models, tmp_path / "one", inner + F32))
    same(found, run(models, tmp_path / "streamed", staged(inner, outer)))
    before = (kept / "model.safetensors").stat().st_mtime_ns
    told: list[str] = []
    again = run(
        models, tmp_path / "out", text, overwrite=True, emit=lambda event: told.append(event.text)
    )
    same(again, found)
    assert any("holds its result already" in text for text in told)
    assert (kept / "model.safetensors").stat().st_mtime_ns == before
    changed = text.replace("density: 0.5", "density: 0.6", 1)
    assert changed != text
    run(models, tmp_path / "out", changed, overwrite=True)
    assert (kept / "model.safetensors").stat().st_mtime_ns != before


def test_rows_of_another_vocabulary_may_come_from_a_stage(models: Path, tmp_path: Path) -> None:
    more = tiny_llama(tmp_path / "more", hidden=64, intermediate=96, vocab=5002, seed=7)
    other = perturbed(more, tmp_path / "other", seed=8, scale=0.02)
    inner = f"base: {more}\nexperts: {{x: {other}}}\nsteps: [{{ties: {{density: 0.5}}}}]\n"
    outer = "base: base\nexperts: {inner: {model: '@inner', weight: 0.5}}\n"
    outer += f"steps: [task_arithmetic]\nvocab: base_rows\n{F32}"
    found = run(models, tmp_path / "out", staged(inner, outer))
    same(found, in_two(models, tmp_path, inner, outer))


def test_experts_of_a_stage_are_read_in_the_layout_of_the_base(tmp_path: Path) -> None:
    prefix = "model.layers.0.mlp.experts"
    shapes = (("gate_proj", (6, 8)), ("up_proj", (6, 8)), ("down_proj", (8, 6)))
    for model in ("one", "two"):
        (tmp_path / model).mkdir()
        tensors = {
            f"{prefix}.{e}.{part}.weight": torch.randn(shape).bfloat16()
            for e in range(3)
            for part, shape in shapes
        }
        save_file(tensors, tmp_path / model / "model.safetensors")
    (tmp_path / "fused").mkdir()
    fused = {
        f"{prefix}.gate_up_proj": torch.randn(3, 12, 8).bfloat16(),
        f"{prefix}.down_proj": torch.randn(3, 8, 6).bfloat16(),
    }
    save_file(fused, tmp_path / "fused" / "model.safetensors")
    inner = "base: one\nexperts: {two: two}\nsteps: [{task_arithmetic: {lambda: 0.3}}]\n"
    outer = "base: fused\nexperts: {inner: {model: '@inner', weight: 0.5}}\n"
    outer += f"steps: [task_arithmetic]\n{F32}"
    found = run(tmp_path, tmp_path / "out", staged(inner, outer))
    same(found, in_two(tmp_path, tmp_path / "runs", inner, outer))


def test_a_kept_result_of_other_inputs_is_not_used(models: Path, tmp_path: Path) -> None:
    math = perturbed(models / "base", tmp_path / "math", seed=1, scale=0.02)
    inner = f"base: {models / 'base'}\nexperts: {{math: {math}}}\nsteps: [task_arithmetic]\n"
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n" + F32
    text = staged(inner + "keep: true\n", outer)
    first = run(models, tmp_path / "out", text)
    perturbed(models / "base", math, seed=2, scale=0.02)
    (tmp_path / "out").rename(tmp_path / "before")
    with pytest.raises(RecipeError, match="not empty"):
        run(models, tmp_path / "out", text)
    again = run(models, tmp_path / "out", text, overwrite=True)
    assert any(not torch.equal(first[name], again[name]) for name in first)
    same(again, run(models, tmp_path / "streamed", staged(inner, outer)))


def test_a_run_that_stops_while_a_stage_is_written_is_taken_up(
    models: Path, tmp_path: Path
) -> None:
    inner = inner_of(CHAINS["random"])
    outer = "base: '@inner'\nexperts: {chat: chat}\nsteps: [{ties: {density: 0.3}}]\n"
    text = staged(inner + "keep: true\noutput: {shard_size: 60kB}\n", outer)
    path = models / "stopped-inside.yaml"
    path.write_text(text)

    def stop(event: Event) -> None:
        if event.kind == "shard" and event.shard == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        api.run(path, tmp_path / "out", emit=stop, threads=1)
    assert not (tmp_path / "out").exists()
    told: list[str] = []
    api.run(path, tmp_path / "out", emit=lambda event: told.append(event.text))
    assert any("shards were done and are intact" in text for text in told)
    same(read_weights(tmp_path / "out"), run(models, tmp_path / "whole", staged(inner, outer)))
