"""Small random adapters, as PEFT saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

LINEAR = ["q_proj", "v_proj", "up_proj", "down_proj"]


def save_lora(base: Path, folder: Path, *, seed: int = 1, zero: bool = False, **own: Any) -> Path:
    """Save an adapter whose B is zero, or random with one direction that outweighs the others."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **own}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for name, value in model.named_parameters():
        if "lora_B" in name and not zero:
            torch.nn.init.normal_(value, std=0.05)
            value.data[:, 0] *= 8
    model.save_pretrained(folder)
    return folder
