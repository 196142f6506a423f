"""What is beside the methods: adapters, plain files, recipes that use one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import write_json
from tests.peer.conftest import Job, Peer, Weights, make_models

pytestmark = pytest.mark.peer
Ours = Callable[..., Weights]

RECIPES = {
    "adapter-alone": "merge_method: passthrough\nmodels: [{model: base+lora}]\n",
    "adapters-added": """
merge_method: task_arithmetic
base_model: base
models:
  - {model: base+lora, parameters: {weight: 0.7}}
  - {model: base+other, parameters: {weight: 0.4}}
  - {model: math, parameters: {weight: 0.2}}
""",
    "adapters-averaged": """
merge_method: linear
models:
  - {model: base+lora, parameters: {weight: 0.7}}
  - {model: base+other, parameters: {weight: 0.4}}
""",
    "adapter-of-another-model": """
merge_method: task_arithmetic
base_model: base
models:
  - {model: math+lora, parameters: {weight: 0.7}}
  - {model: code, parameters: {weight: 0.4}}
""",
    "adapter-in-the-base": """
merge_method: slerp
base_model: base+lora
models: [{model: far}]
parameters: {t: [0.2, 0.8]}
""",
}
SEVERAL = {
    "a-chain": """
name: first
merge_method: slerp
base_model: math
models: [{model: far}]
parameters: {t: [0.2, 0.8]}
dtype: float32
---
name: second
merge_method: ties
base_model: base
models:
  - {model: math, parameters: {weight: 0.7, density: 0.4}}
  - {model: code, parameters: {weight: 0.4}}
dtype: float32
---
merge_method: linear
models:
  - {model: second, parameters: {weight: 0.6}}
  - {model: first, parameters: {weight: 0.3}}
  - {model: base, parameters: {weight: 0.1}}
dtype: float32
""",
}
FILES = {
    "files-averaged": """
merge_method: linear
models:
  - {model: math/model.safetensors, parameters: {weight: 0.7}}
  - {model: code/model.safetensors, parameters: {weight: 0.4}}
""",
    "files-trimmed": """
merge_method: ties
base_model: base/model.safetensors
models:
  - {model: math/model.safetensors, parameters: {weight: 0.7, density: 0.4}}
  - {model: code/model.safetensors, parameters: {weight: 0.4}}
""",
}


def write_adapter(folder: Path, seed: int) -> None:
    """Write a PEFT adapter of two modules of each layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(4):
        for module, rows, columns in (("self_attn.q_proj", 32, 32), ("mlp.down_proj", 32, 64)):
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.1
            tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "target_modules": ["q_proj", "down_proj"],
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
    }
    write_json(folder / "adapter_config.json", config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the models and adapters."""
    root = make_models(tmp_path_factory.mktemp("features"), "float32")
    for seed, name in enumerate(("lora", "other"), start=20):
        write_adapter(root / name, seed)
    return root


@pytest.fixture(scope="module")
def theirs(place: Path, tmp_path_factory: pytest.TempPathFactory, peer_python: str) -> Peer:
    """Return what mergekit makes of all of it."""
    found = Peer(peer_python, tmp_path_factory.mktemp("mergekit-features"))
    jobs = [Job(name, f"{text}dtype: float32\n", place) for name, text in RECIPES.items()]
    jobs += [Job(name, text, place, "files") for name, text in FILES.items()]
    jobs += [Job(name, text, place, "several") for name, text in SEVERAL.items()]
    found.run(jobs)
    return found


@pytest.mark.parametrize("name", [*RECIPES, *SEVERAL, *FILES])
def test_the_same_in_fp32(name: str, theirs: Peer, place: Path, ours: Ours) -> None:
    other = theirs.weights(name)
    mine = ours({**RECIPES, **SEVERAL, **FILES}[name], place)
    assert mine.keys() == other.keys()
    for tensor, value in other.items():
        near = 1e-6 * float(value.abs().max())
        torch.testing.assert_close(mine[tensor], value, rtol=1e-5, atol=near)
