"""A tiny base with two experts, and texts to choose by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.calibrate.conftest import save_model

RECIPE = """\
base: ./base
experts:
  one: {model: ./one, weight: {search: [0.0, 1.0]}}
  two: {model: ./two, weight: {search: [0.0, 1.0], default: 0.25}}
steps: [{ties: {density: {choice: [0.5, 1.0]}}}]
output: {dtype: bfloat16}
search:
  data: {left: left.txt, right: right.txt}
"""
LEFT = "w4 w6 w8 w10 w4 w6\nw12 w14 w8\n"
RIGHT = "w5 w7 w9 w11 w5 w7\nw13 w15 w9\n"


def save_expert(folder: Path, base: Path, seed: int) -> Path:
    """Write the base with noise on a part of its weights."""
    save_model(folder, "llama", seed=0)
    tensors = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if "norm" not in name:
            tensors[name] = tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `one`, `two`, texts and `recipe.yaml`. Read only."""
    folder = tmp_path_factory.mktemp("search")
    base = save_model(folder / "base", "llama", seed=0)
    save_expert(folder / "one", base, 1)
    save_expert(folder / "two", base, 2)
    (folder / "left.txt").write_text(LEFT * 4)
    (folder / "right.txt").write_text(RIGHT * 4)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder
