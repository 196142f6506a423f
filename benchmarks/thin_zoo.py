"""The zoo with every width cut down: real weights in all 30 layers, a hundredth of the bytes.

No model that says anything, but merging it takes a fraction of a second, and what a method does to
its entries, rows and layers is what it does to the real ones.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mergekit_lite.sources.zoo import adapters, zoo_folder

HIDDEN, INNER, HEAD, HEADS, KEYS = 48, 96, 16, 3, 1
SIDES = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (KEYS * HEAD, HIDDEN),
    "v_proj": (KEYS * HEAD, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (INNER, HIDDEN),
    "up_proj": (INNER, HIDDEN),
    "down_proj": (HIDDEN, INNER),
}
"""Linear layer -> outputs and inputs that are kept, the first ones."""
CONFIG = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "head_dim": HEAD,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
}


def thin_zoo(folder: Path) -> dict[str, Path]:
    """Write the base and its adapters into `folder`; return the folder of each by its reference."""
    found = {"zoo:smol": _base(zoo_folder("zoo:smol"), folder / "smol")}
    for name, home in adapters().items():
        found[f"zoo:smol-{name}"] = _adapter(home, folder / f"smol-{name}")
    return found


def on_thin(text: str, models: Mapping[str, Path]) -> str:
    """Return a recipe's text with the thin models in place of the zoo's."""
    return re.sub(r"zoo:smol(-\w+)?", lambda found: str(models[found[0]]), text)


def _linear(name: str) -> tuple[int, int] | None:
    return next((sides for module, sides in SIDES.items() if f".{module}." in name), None)


def _base(home: Path, folder: Path) -> Path:
    _copied(home, folder)
    config = json.loads((home / "config.json").read_text(encoding="utf-8")) | CONFIG
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = {}
    for name, value in load_file(home / "model.safetensors").items():
        if sides := _linear(name):
            value = value[: sides[0], : sides[1]]
        weights[name] = value[..., :HIDDEN] if sides is None else value
    return _written(folder, "model.safetensors", weights)


def _adapter(home: Path, folder: Path) -> Path:
    _copied(home, folder)
    weights = {}
    for name, value in load_file(home / "adapter_model.safetensors").items():
        out, inside = _linear(name) or value.shape
        weights[name] = value[:, :inside] if "lora_A" in name else value[:out]
    return _written(folder, "adapter_model.safetensors", weights)


def _copied(home: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in home.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)


def _written(folder: Path, name: str, weights: Mapping[str, torch.Tensor]) -> Path:
    kept = {key: value.contiguous() for key, value in weights.items()}
    save_file(kept, folder / name, {"format": "pt"})
    return folder
