"""Folders of diffusers: one component, and a whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergekit_lite import api
from mergekit_lite.export.verify import verify
from tests.checkpoints import write_json

Weights = dict[str, Tensor]
STEM = "diffusion_pytorch_model"


def unet(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    names = ["conv_in", "down_blocks.0.attentions.0.to_q", "down_blocks.1.attentions.0.to_q"]
    made = {f"{n}.weight": torch.randn(8, 8, generator=generator) for n in names}
    return made | {"conv_out.weight": torch.randn(4, 8, 3, 3, generator=generator)}


def component(folder: Path, weights: Weights, stem: str, config: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    save_file(weights, folder / f"{stem}.safetensors", {"format": "pt"})
    write_json(folder / "config.json", config)


def pipeline(folder: Path, seed: int) -> Path:
    """Two components that store tensors of the same names, a scheduler and a tokenizer."""
    component(folder / "unet", unet(seed), STEM, {"_class_name": "U", "_diffusers_version": "0.3"})
    text = {"conv_in.weight": unet(seed + 10)["conv_in.weight"]}
    component(folder / "text_encoder", text, "model", {"model_type": "clip", "dtype": "float32"})
    write_json(folder / "model_index.json", {"_class_name": "Pipe", "unet": ["diffusers", "U"]})
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", {"beta": 1})
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "old-format.safetensors").write_bytes(b"of another tool")
    return folder


def recipe(root: Path, **more: object) -> dict[str, object]:
    experts = {"style": {"model": str(root / "style"), "weight": 0.5}}
    return {"base": str(root / "base"), "experts": experts, "steps": ["task_arithmetic"], **more}


def test_a_component_keeps_the_file_names_that_its_loader_wants(tmp_path: Path) -> None:
    config = {"_class_name": "U", "_diffusers_version": "0.3"}
    component(tmp_path / "base", unet(1), STEM, config)
    component(tmp_path / "style", unet(2), STEM, config)
    save_file(unet(1), tmp_path / "base" / f"{STEM}.fp16.safetensors")
    api.run(recipe(tmp_path), tmp_path / "out")
    found = load_file(tmp_path / "out" / f"{STEM}.safetensors")
    left, right = unet(1), unet(2)
    for name, value in found.items():
        assert torch.equal(value, left[name] + 0.5 * (right[name] - left[name]))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    api.run(recipe(tmp_path, output={"shard_size": 600}), tmp_path / "parts")
    index = json.loads((tmp_path / "parts" / f"{STEM}.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(left)
    files = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert files[0] == f"{STEM}-00001-of-0000{len(files)}.safetensors"
    assert verify(tmp_path / "parts") == []


def test_a_pipeline_is_merged_component_by_component(tmp_path: Path) -> None:
    pipeline(tmp_path / "base", 1)
    pipeline(tmp_path / "style", 2)
    rules = [{"match": "text_encoder/*", "take": "base"}]
    made = api.plan(recipe(tmp_path, rules=rules, output={"dtype": "bfloat16", "shard_size": 300}))
    assert any("old-format.safetensors` is beside" in warning for warning in made.warnings)
    api.run(made, tmp_path / "out")
    out = tmp_path / "out"
    left, right = unet(1), unet(2)
    index = json.loads((out / "unet" / f"{STEM}.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(left)
    for name, file in index["weight_map"].items():
        want = (left[name] + 0.5 * (right[name] - left[name])).bfloat16()
        assert torch.equal(load_file(out / "unet" / file)[name], want)
    text = load_file(out / "text_encoder" / "model.safetensors")
    assert torch.equal(text["conv_in.weight"], unet(11)["conv_in.weight"].bfloat16())
    assert json.loads((out / "text_encoder" / "config.json").read_text())["dtype"] == "bfloat16"
    for file in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"):
        assert (out / file).read_bytes() == (tmp_path / "base" / file).read_bytes()
    assert not (out / "old-format.safetensors").exists()
    assert verify(out) == []
    card = (out / "README.md").read_text()
    assert "library_name: diffusers" in card
    assert 'DiffusionPipeline.from_pretrained("out")' in card
    (out / "unet" / "stray.safetensors").write_bytes(b"")
    assert [problem.where for problem in verify(out)] == ["unet/stray.safetensors"]


def test_a_pipeline_that_was_interrupted_leaves_nothing_foreign(tmp_path: Path) -> None:
    pipeline(tmp_path / "base", 1)
    pipeline(tmp_path / "style", 2)
    left = tmp_path / "out.partial" / "unet"
    made = api.plan(recipe(tmp_path))
    api.run(made, tmp_path / "out")
    assert not left.exists()
    names = {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")
    }
    assert f"unet/{STEM}.safetensors" in names
    assert not [name for name in names if "partial" in name]
