"""Merging quantised checkpoints: they count as the floats that their codes stand for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mergekit_lite import api
from mergekit_lite.errors import DataError
from mergekit_lite.report.diff import compare
from mergekit_lite.sources import resolve
from tests import quantised as q
from tests.checkpoints import perturbed, read_weights, tiny_llama

RECIPE = """base: {base}
experts: {{math: {{model: {math}, weight: 0.5}}, code: {{model: {code}, weight: 0.25}}}}
steps: [{steps}]
"""
Values = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Values]]:
    """Models in bf16 and in fp8, and what every one of their tensors stands for."""
    folder = tmp_path_factory.mktemp("quantised")
    base = tiny_llama(folder / "base", hidden=48, intermediate=72)
    values = {}
    for seed, name in enumerate(("base", "math", "code")):
        if seed:
            perturbed(base, folder / name, seed=seed, scale=0.02)
        plain = read_weights(folder / name)
        values[name] = {key: value.float().numpy() for key, value in plain.items()}
        _, values[f"{name}8"] = q.fp8_copy(folder / name, folder / f"{name}8")
    return folder, values


def merged(folder: Path, out: Path, text: str, **options: object) -> dict[str, torch.Tensor]:
    path = folder / f"{out.name}.yaml"
    path.write_text(text)
    api.run(path, out, **options)
    return read_weights(out)


@pytest.mark.parametrize("names", [("base8", "math", "code8"), ("base", "math8", "code8")])
def test_a_merge_is_that_of_the_numbers(
    world: tuple[Path, dict[str, Values]], tmp_path: Path, names: tuple[str, str, str]
) -> None:
    folder, values = world
    base, math, code = names
    steps = "{task_arithmetic: {lambda: 0.8}}"
    text = RECIPE.format(base=base, math=math, code=code, steps=steps)
    found = merged(folder, tmp_path / "out", text + "output: {dtype: float32}")
    assert set(found) == set(values["base"])
    for name, tensor in found.items():
        x = values[base][name].astype(np.float32)
        delta = np.float32(0.5) * (values[math][name] - x)
        delta = (delta + np.float32(0.25) * (values[code][name] - x)) * np.float32(0.8)
        expected = np.where(delta == 0, x, x + delta)
        np.testing.assert_array_equal(tensor.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("steps", ["ties: {density: 0.3}", "dare_ties: {density: 0.5}"])
def test_the_bytes_depend_on_nothing(
    world: tuple[Path, dict[str, Values]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: str,
) -> None:
    folder, _ = world
    text = RECIPE.format(base="base8", math="math8", code="code", steps=f"{{{steps}}}")
    first = merged(folder, tmp_path / "a", text, threads=1)
    second = merged(folder, tmp_path / "b", text, threads=2, max_memory=300_000_000)
    monkeypatch.setenv("MERGEKIT_LITE_JIT", "0")
    third = merged(folder, tmp_path / "c", text)
    for name in first:
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], third[name])


def test_what_is_taken_is_rounded_once_and_the_config_is_true_of_it(
    world: tuple[Path, dict[str, Values]], tmp_path: Path
) -> None:
    folder, values = world
    text = RECIPE.format(base="base8", math="math8", code="code8", steps="task_arithmetic")
    found = merged(folder, tmp_path / "out", text + "rules: [{match: '*', take: math}]")
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        expected = torch.from_numpy(values["math8"][name]).bfloat16()
        assert torch.equal(tensor, expected.reshape(tensor.shape))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((folder / "base8" / "config.json").read_text())
    assert before.pop("quantization_config")["quant_method"] == "fp8"
    assert config == before
    assert api.plan(folder / "out.yaml").inputs["base"].quantization == ("fp8, dequantised to BF16")


def test_an_adapter_of_a_quantised_base(
    world: tuple[Path, dict[str, Values]], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    folder, values = world
    module = "model.layers.1.mlp.up_proj"
    lora = folder / "lora"
    lora.mkdir()
    a, b = torch.randn(2, 48), torch.randn(72, 2)
    prefix = f"base_model.model.{module}"
    factors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    save_file(factors, lora / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    text = "base: base8\nexperts: {tuned: {lora: lora}}\nsteps: [task_arithmetic]\n"
    found = merged(folder, tmp_path / "out", text + "output: {dtype: float32}")
    expected = torch.from_numpy(values["base8"][f"{module}.weight"]) + b @ a
    torch.testing.assert_close(found[f"{module}.weight"], expected.float())


def test_nan_among_the_codes_is_named(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    codes = torch.zeros(4, 4, dtype=torch.uint8)
    for model in ("base", "math"):
        stored = {name: codes.view(torch.float8_e4m3fn), f"{name}_scale": torch.tensor(2.0)}
        q.save(tmp_path / model, stored, {"quant_method": "fp8"})
        codes = codes.clone()
        codes[1, 2] = 0x7F
    text = "base: base\nexperts: {math: math}\nsteps: [task_arithmetic]\n"
    with pytest.raises(DataError, match="1 of 16 entries are NaN"):
        merged(tmp_path, tmp_path / "out", text)


def test_a_difference_is_that_of_the_numbers(world: tuple[Path, dict[str, Values]]) -> None:
    folder, values = world
    a, b = (resolve(name, relative_to=folder) for name in ("base8", "math"))
    found = compare(a, b)
    assert (found.only_a, found.only_b, found.unlike) == ((), (), ())
    norm = sum(
        float(np.square(values["math"][name].astype(np.float64) - values["base8"][name]).sum())
        for name in values["base"]
    )
    assert found.total.norm == pytest.approx(norm**0.5, rel=1e-5)
    assert compare(a, a).same


def test_experts_stored_transposed_merge_with_plain_ones(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored, value = q.mxfp4_experts(name, 2, 20, 2)
    q.save(tmp_path / "base", stored, {"quant_method": "mxfp4"})
    plain = torch.from_numpy(value) + torch.randn(value.shape)
    q.save(tmp_path / "math", {name: plain.bfloat16()})
    text = "base: base\nexperts: {math: math}\nsteps: [{task_arithmetic: {lambda: 0.5}}]\n"
    found = merged(tmp_path, tmp_path / "out", text + "output: {dtype: float32}")[name]
    base = torch.from_numpy(value.astype(np.float32))
    assert torch.equal(found, base + (plain.bfloat16().float() - base) * 0.5)
    plan = api.plan(tmp_path / "out.yaml")
    assert plan.jobs[0].base is not None
    assert plan.jobs[0].base.held == 20 * 2 * 17


def test_experts_stored_one_by_one_in_codes_merge_with_fused_ones(tmp_path: Path) -> None:
    prefix = "model.layers.0.mlp.experts"
    fused = {
        f"{prefix}.gate_up_proj": torch.randn(2, 12, 8).bfloat16(),
        f"{prefix}.down_proj": torch.randn(2, 8, 6).bfloat16(),
    }
    q.save(tmp_path / "base", fused)
    stored: dict[str, torch.Tensor] = {}
    values: dict[str, np.ndarray] = {}
    for e in range(2):
        for part, shape in (("gate_proj", (6, 8)), ("up_proj", (6, 8)), ("down_proj", (8, 6))):
            name = f"{prefix}.{e}.{part}.weight"
            made, values[f"{e}.{part}"] = q.fp8_blocks(name, torch.randn(shape), (4, 4))
            stored |= made
    settings = {"quant_method": "fp8", "weight_block_size": [4, 4]}
    q.save(tmp_path / "math", stored, settings)
    text = "base: base\nexperts: {math: math}\nsteps: [task_arithmetic]\n"
    found = merged(tmp_path, tmp_path / "out", text + "output: {dtype: float32}")
    both = [np.concatenate([values[f"{e}.gate_proj"], values[f"{e}.up_proj"]]) for e in range(2)]
    expected = {
        f"{prefix}.gate_up_proj": np.stack(both),
        f"{prefix}.down_proj": np.stack([values[f"{e}.down_proj"] for e in range(2)]),
    }
    for name, value in expected.items():
        base = fused[name].float().numpy()
        np.testing.assert_array_equal(found[name].numpy(), base + (value - base))


def test_rows_of_another_vocabulary_may_be_codes(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", vocab=64)
    tiny_llama(tmp_path / "plain", vocab=66, seed=1)
    name = "model.embed_tokens.weight"
    stored = read_weights(tmp_path / "plain")
    made, value = q.fp8_blocks(name, stored[name], (16, 16))
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    settings = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    q.save(tmp_path / "plain", stored | made, settings, **config)
    text = "base: base\nexperts: {more: plain}\nsteps: [task_arithmetic]\nvocab: base_rows\n"
    found = merged(tmp_path, tmp_path / "out", text + "output: {dtype: float32}")[name].numpy()
    before = read_weights(base)[name].float().numpy()
    np.testing.assert_array_equal(found, before + (value[:64].astype(np.float32) - before))
