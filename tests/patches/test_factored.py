"""Patches of adapters: both factors compressed, merged as the adapters that they decode to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_lite import api, patching
from mergekit_lite.errors import DataError, RecipeError
from tests.checkpoints import read_weights
from tests.patches.test_patches import deltas

MODULES = {
    "model.layers.0.mlp.up_proj": (64, 32),
    "model.layers.0.mlp.down_proj": (32, 64),
    "model.layers.1.self_attn.q_proj": (32, 32),
}
KEY = "base_model.model.{}.lora_{}.weight"


def adapter(folder: Path, *, seed: int = 0, scale: float = 0.1, **config: Any) -> Path:
    """Write a LoRA adapter of rank 4 with one module saved whole."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"base_model.model.model.norm.weight": torch.linspace(0.5, 1.5, 32)}
    for module, (rows, width) in MODULES.items():
        tensors[KEY.format(module, "A")] = scale * torch.randn(4, width, generator=generator)
        tensors[KEY.format(module, "B")] = scale * torch.randn(rows, 4, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["up_proj", "down_proj", "q_proj"],
        "modules_to_save": ["norm"],
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(told))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def rewritten(folder: Path, out: Path, change: Any) -> Path:
    """Write the same adapter with other factors."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = sorted(name for name in tensors if "lora_" in name)
    tensors |= dict(zip(names, change([tensors[name] for name in names]), strict=True))
    out.mkdir()
    config = (folder / "adapter_config.json").read_text()
    (out / "adapter_config.json").write_text(config)
    save_file({n: v.contiguous() for n, v in tensors.items()}, out / "adapter_model.safetensors")
    return out


def signs(factors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Keep the signs of the largest fifth of all factors, times their deviation: by hand."""
    whole = torch.cat([factor.flatten() for factor in factors])
    threshold = whole.abs().sort(descending=True).values[int(0.2 * len(whole)) - 1]
    return [torch.where(f.abs() >= threshold, f.sign() * whole.std(), 0.0) for f in factors]


def nearest(factors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Round each row to 255 levels; B row by row, A row by row."""
    found = []
    for factor in factors:
        scale = factor.abs().amax(dim=1, keepdim=True) / np.float32(127)
        found.append((factor / scale).round() * scale)
    return found


@pytest.mark.parametrize(
    ("method", "params", "by_hand"),
    [
        ("compeft", {"keep": 0.2}, signs),
        ("compeft", {"keep": 0.2, "form": "masks"}, signs),
        ("intq", {"bits": 8}, nearest),
    ],
)
def test_a_patch_is_the_adapter_of_its_factors(
    method: str, params: dict[str, Any], by_hand: Any, tmp_path: Path, base_folder: Path
) -> None:
    folder = adapter(tmp_path / "lora")
    patch = tmp_path / "p.safetensors"
    summary = patching.compress(str(folder), str(base_folder), patch, method=method, **params)
    other = rewritten(folder, tmp_path / "other", by_hand)
    for name, expert in (("one", {"model": str(patch)}), ("two", {"lora": str(other)})):
        recipe = {
            "base": str(base_folder),
            "experts": {"a": expert},
            "steps": [{"task_arithmetic": {"lambda": 1.0}}],
            "output": {"dtype": "float32"},
        }
        api.run(recipe, tmp_path / name)
    one, two = read_weights(tmp_path / "one"), read_weights(tmp_path / "two")
    for name, value in two.items():
        assert torch.allclose(one[name], value, rtol=1e-5, atol=1e-6), name
    assert torch.equal(one["model.norm.weight"], torch.linspace(0.5, 1.5, 32))
    assert (summary.compressed.tensors, summary.whole.tensors) == (3, 1)
    # What is told to be missed is what is missed of the products.
    whole, added = load_file(folder / "adapter_model.safetensors"), deltas(patch)
    missed = total = 0.0
    for module in MODULES:
        exact = 2.0 * whole[KEY.format(module, "B")] @ whole[KEY.format(module, "A")]
        missed += float((exact - added[f"{module}.weight"]).double().square().sum())
        total += float(exact.double().square().sum())
    assert summary.compressed.error == pytest.approx((missed / total) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("method", ["bitdelta", "topk_sparse", "tvq", "ultradelta", "delta_come"])
def test_every_codec_takes_factors(method: str, tmp_path: Path, base_folder: Path) -> None:
    folder = adapter(tmp_path / "lora")
    patch = tmp_path / "p.safetensors"
    patching.compress(str(folder), str(base_folder), patch, method=method)
    first = patch.read_bytes()
    patching.compress(str(folder), str(base_folder), patch, method=method, overwrite=True)
    assert patch.read_bytes() == first
    patching.apply(str(patch), str(base_folder), tmp_path / "out")
    added, before = deltas(patch), read_weights(base_folder)
    for name, value in read_weights(tmp_path / "out").items():
        if name in added:
            wanted = (before[name].float() + added[name]).bfloat16()
            assert torch.equal(value, torch.where(added[name] == 0, before[name], wanted)), name


def test_adapters_that_are_more_than_pairs(tmp_path: Path, base_folder: Path) -> None:
    folder = adapter(tmp_path / "lora", use_dora=True)
    tensors = load_file(folder / "adapter_model.safetensors")
    for module, (rows, _) in MODULES.items():
        tensors[f"base_model.model.{module}.lora_magnitude_vector"] = torch.ones(rows)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match="has DoRA, which is no plain pair") as error:
        patching.compress(str(folder), str(base_folder), tmp_path / "p.safetensors")
    assert len(error.value.problems) == 3
    assert not (tmp_path / "p.safetensors").exists()


def test_factors_that_cannot_be_compressed(tmp_path: Path, base_folder: Path) -> None:
    out = tmp_path / "p.safetensors"
    with pytest.raises(RecipeError, match="is less than one"):
        patching.compress(str(adapter(tmp_path / "a")), str(base_folder), out, keep=1e-6)
    equal = rewritten(tmp_path / "a", tmp_path / "b", lambda f: [torch.ones_like(x) for x in f])
    with pytest.raises(DataError, match="standard deviation is 0"):
        patching.compress(str(equal), str(base_folder), out)
    broken = rewritten(tmp_path / "a", tmp_path / "c", lambda f: [x / 0 for x in f])
    with pytest.raises(DataError, match="holds NaN or infinity"):
        patching.compress(str(broken), str(base_folder), out)
    with pytest.raises(RecipeError, match="without a calibration"):
        patching.compress(
            str(tmp_path / "a"), str(base_folder), out, method="bitdelta", calibration=tmp_path
        )
    assert not out.exists()


def test_a_damaged_or_misplaced_patch_of_an_adapter(tmp_path: Path, base_folder: Path) -> None:
    patch = tmp_path / "p.safetensors"
    patching.compress(str(adapter(tmp_path / "a")), str(base_folder), patch, keep=0.2)
    data = bytearray(patch.read_bytes())
    data[-1] ^= 1
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(data)
    with pytest.raises(DataError, match="another checksum"):
        patching.apply(str(broken), str(base_folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
