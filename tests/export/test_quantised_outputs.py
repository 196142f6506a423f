"""Outputs written as codes: what they stand for, who loads them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig

from mergekit_lite import api
from mergekit_lite.checkpoint import read_checkpoint
from mergekit_lite.checkpoint.coded.schemes import SCHEMES
from mergekit_lite.errors import DataError, Interrupted, RecipeError
from mergekit_lite.export.verify import verify
from mergekit_lite.plan.estimate import estimate
from mergekit_lite.plan.types import Plan
from mergekit_lite.sources import resolve
from tests.checkpoints import perturbed, read_weights, tiny_llama, write_json
from tests.moe.dense import make

Q = "model.layers.1.self_attn.q_proj"
MLP, PARTS = "model.layers.1.mlp", ("down", "gate", "up")
FORMS = {
    **{name: {"scheme": name} for name in SCHEMES},
    "W4A16": {"scheme": "W4A16", "group_size": 32},
    "W4A16 mse": {"scheme": "W4A16", "group_size": 32, "scales": "mse"},
    "W8A16": {"scheme": "W8A16", "group_size": 0},
    "W8A8 mse": {"scheme": "W8A8", "scales": "mse"},
}
ERROR = {"E4M3": 2**-4, "I8": 2**-6, "U8": 2**-6, "U4": 1 / 6, "E2M1": 1 / 3}
"""Most that an entry may be off, of the largest magnitude under its scale."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    base = tiny_llama(folder / "base", hidden=64, intermediate=160)
    perturbed(base, folder / "math", seed=1, scale=0.02)
    return folder


def recipe(models: Path, quantize: Any, **more: Any) -> dict[str, Any]:
    return {
        "base": str(models / "base"),
        "experts": {"math": str(models / "math")},
        "steps": [{"ties": {"density": 0.5}}],
        "output": {"quantize": quantize, **more},
    }


def decompressed(folder: Path, module: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return what compressed-tensors says that a module's codes stand for."""
    weights = read_weights(folder)
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(said)
    scheme = config.config_groups["group_0"]
    state = {
        name.removeprefix(f"{module}."): value.float() if name.endswith("_scale") and
        value.dtype == torch.bfloat16 else value
        for name, value in weights.items() if name.startswith(f"{module}.")
    }  # fmt: skip
    found = BaseCompressor.get_value_from_registry(config.format).decompress(state, scheme)
    assert found["weight"].shape == shape
    return found["weight"].float().numpy()


@pytest.mark.parametrize("form", FORMS)
def test_codes_stand_for_the_merged_numbers(models: Path, tmp_path: Path, form: str) -> None:
    wanted = FORMS[form]
    api.run(recipe(models, wanted), tmp_path / "codes")
    api.run({**recipe(models, None), "output": {"dtype": "float32"}}, tmp_path / "whole")
    merged = {
        name: value.float().numpy() for name, value in read_weights(tmp_path / "whole").items()
    }
    shown = resolve(str(tmp_path / "codes"), relative_to=tmp_path)
    assert shown.header.tensors.keys() == merged.keys()
    assert shown.quantization
    # Read by our own reader as fp32.
    take = {"base": str(tmp_path / "codes"), "steps": [{"take": {"source": "base"}}]}
    api.run({**take, "output": {"dtype": "float32"}}, tmp_path / "back")
    read = {name: value.numpy() for name, value in read_weights(tmp_path / "back").items()}
    codes = SCHEMES[wanted["scheme"]].codes
    for name, value in merged.items():
        if shown.header.tensors[name].coded is None:
            assert np.array_equal(torch.from_numpy(value).bfloat16().float().numpy(), read[name])
            continue
        peak = np.abs(value).max()
        assert np.abs(read[name] - value).max() <= ERROR[codes.form] * peak, name
        theirs = decompressed(tmp_path / "codes", name.removesuffix(".weight"), value.shape)
        # Theirs are in bfloat16 where codes are 4-bit floats.
        near = 2**-7 if codes.form == "E2M1" else 1e-6
        np.testing.assert_allclose(theirs, read[name], rtol=near, atol=0)
    assert shown.header.tensors[f"{Q}.weight"].coded is not None
    assert shown.header.tensors["model.embed_tokens.weight"].coded is None


def test_the_same_bytes_whatever_the_tiles_and_threads(models: Path, tmp_path: Path) -> None:
    for form in ("FP8", "FP8_BLOCK", "NVFP4A16"):
        api.run(recipe(models, form), tmp_path / f"{form}-one", threads=1)
        other = {"threads": 3, "max_memory": 400_000_000}
        api.run(recipe(models, form, shard_size="60kB"), tmp_path / f"{form}-other", **other)
        one, many = (read_weights(tmp_path / f"{form}-{which}") for which in ("one", "other"))
        assert one.keys() == many.keys()
        for name, value in one.items():
            assert torch.equal(value.view(torch.uint8), many[name].view(torch.uint8)), name


def test_tensors_larger_than_a_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base", hidden=64, intermediate=160)
    forms = ("FP8", "FP8_BLOCK", "NVFP4A16", "W4A16")
    wanted = {f: FORMS[f] | {"ignore": ["*.self_attn.*"]} for f in forms}
    for form in forms:
        api.run({"base": str(base), "output": {"quantize": wanted[form]}}, tmp_path / form)
    monkeypatch.setattr("mergekit_lite.engine.local.tile_for", lambda plan, options: 4096)
    for form in forms:
        api.run({"base": str(base), "output": {"quantize": wanted[form]}}, tmp_path / f"{form}-cut")
        whole = (tmp_path / form / "model.safetensors").read_bytes()
        assert (tmp_path / f"{form}-cut" / "model.safetensors").read_bytes() == whole


def test_the_config_and_the_lock_tell_of_it(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.run(recipe(models, {"scheme": "W4A16", "group_size": 32, "ignore": "*.1.mlp.*"}), out)
    said = json.loads((out / "config.json").read_text())
    quantised = said["quantization_config"]
    assert quantised["format"] == "pack-quantized"
    assert sorted(quantised["ignore"]) == ["lm_head", *(f"{MLP}.{m}_proj" for m in PARTS)]
    assert said["dtype"] == "bfloat16"
    assert verify(out) == []
    header = read_checkpoint(out)
    assert header.tensors[f"{Q}.weight_packed"].dtype == "I32"
    assert header.tensors[f"{Q}.weight_scale"].dtype == "BF16"
    assert header.tensors["model.layers.1.mlp.up_proj.weight"].dtype == "BF16"
    text = (out / "README.md").read_text()
    assert "W4A16" in text


def test_a_plan_knows_names_sizes_and_goes_through_json(models: Path, tmp_path: Path) -> None:
    plan = api.plan(recipe(models, "FP8_DYNAMIC", shard_size="40kB"))
    assert Plan.from_json(plan.to_json()) == plan
    rows = {job.name: job for job in plan.jobs}
    assert [p.name for p in rows[f"{Q}.weight"].parts] == [f"{Q}.weight", f"{Q}.weight_scale"]
    cost = estimate(plan)
    plain = estimate(api.plan(recipe(models, None, shard_size="40kB")))
    assert cost.write_bytes < 0.8 * plain.write_bytes
    api.run(plan, tmp_path / "out")
    files = sorted(tmp_path.glob("out/*.safetensors"))
    assert sum(path.stat().st_size for path in files) == cost.write_bytes
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert f"{Q}.weight_scale" in index["weight_map"]


def test_a_run_is_taken_up_where_it_stopped(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(models, "FP8", shard_size="40kB")
    api.run(wanted, tmp_path / "whole")

    def stop(event: Any) -> None:
        if event.kind == "shard" and event.shard == 2:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        api.run(wanted, tmp_path / "out", emit=stop, threads=1)
    again: list[str] = []
    api.run(wanted, tmp_path / "out", emit=lambda event: again.append(event.kind))
    assert again.count("shard") < len(list(tmp_path.glob("whole/*.safetensors")))
    for path in tmp_path.glob("whole/*.safetensors"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_transformers_computes_what_the_codes_stand_for(
    tmp_path: Path, form: str, llama: Callable[[], Path]
) -> None:
    from transformers import AutoModelForCausalLM

    base = llama()
    api.run({"base": str(base), "output": {"quantize": FORMS[form]}}, tmp_path / "codes")
    take = {"base": str(tmp_path / "codes"), "steps": [{"take": {"source": "base"}}]}
    api.run({**take, "output": {"dtype": "float32"}}, tmp_path / "back")
    tokens = torch.arange(1, 33).reshape(1, 32)
    logits = {}
    # compressed-tensors decodes 4-bit floats to bfloat16, whatever the model's dtype.
    four = SCHEMES[FORMS[form]["scheme"]].codes.form == "E2M1"
    for name in (tmp_path / "back", tmp_path / "codes", base):
        dtype = torch.bfloat16 if four else torch.float32
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        with torch.no_grad():
            logits[name.name] = model.eval()(tokens).logits.float()
    # Where inputs are quantised as well, that adds an error of its own.
    inputs = SCHEMES[FORMS[form]["scheme"]].inputs
    near = (logits["codes"] - logits["back"]).norm() / logits["back"].norm()
    assert near < (0.1 if inputs else 0.02 if four else 1e-4)
    assert (logits["codes"] - logits["base"]).norm() / logits["base"].norm() < 0.35


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    folder = tmp_path_factory.mktemp("llama") / "base"
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    made = make("llama", folder, **sizes, initializer_range=0.05)
    return lambda: made


@pytest.mark.parametrize(
    ("quantize", "more", "words"),
    [
        ("W4A16", {}, "needs whole groups of 128 columns"),
        ({"scheme": "MXFP4A16", "group_size": 64}, {}, "groups of MXFP4A16 have one size"),
        ({"scheme": "FP8", "scales": "mse"}, {}, "does not search its scales"),
        ({"scheme": "FP8", "ignore": ["*.experts.*"]}, {}, "names no module of the output"),
        ({"scheme": "FP8", "ignore": "*"}, {}, "no matrix is left to quantise"),
        ("FP8", {"lora": {"method": "cat"}}, "an adapter is not quantised"),
    ],
)
def test_what_does_not_fit_is_told_before_a_byte_is_read(
    models: Path, quantize: Any, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words.replace("*", r"\*")):
        api.plan(recipe(models, quantize, **more))


def test_other_kinds_of_models_are_refused(models: Path, tmp_path: Path) -> None:
    other = perturbed(models / "base", tmp_path / "other", seed=2, scale=0.01)
    write_json(other / "config.json", {"model_type": "gpt2"})
    with pytest.raises(RecipeError, match="`gpt2` model has no linear layers"):
        api.plan({"base": str(other), "output": {"quantize": "FP8"}})
    (other / "config.json").unlink()
    with pytest.raises(RecipeError, match=r"has no config\.json"):
        api.plan({"base": str(other), "output": {"quantize": "FP8"}})
    stage = {
        "inner": {"base": str(models / "base"), "output": {"quantize": "FP8"}, "steps": ["take"]}
    }
    with pytest.raises(RecipeError, match="a stage is not quantised"):
        api.plan({"base": "@inner", "stages": stage, "output": {"dtype": "float16"}})


def test_infinities_have_no_code(models: Path, tmp_path: Path) -> None:
    from tests.checkpoints import write_weights

    weights = read_weights(models / "base")
    weights[f"{Q}.weight"][3, 4] = torch.inf
    bad = tmp_path / "bad"
    bad.mkdir()
    write_weights(bad, weights)
    (bad / "config.json").write_bytes((models / "base" / "config.json").read_bytes())
    wanted = {"base": str(bad), "output": {"quantize": "FP8_DYNAMIC"}}
    with pytest.raises(DataError, match="not finite"):
        api.run(wanted, tmp_path / "out")
    with pytest.raises(DataError, match=rf"{Q}.*no code stands for them"):
        api.run(wanted, tmp_path / "out", allow_nonfinite=True)
    assert not (tmp_path / "out").exists()
