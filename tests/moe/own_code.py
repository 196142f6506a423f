"""Models that bring their own code, loaded with transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.moe.dense import tokens


def load(folder: Path) -> Any:
    """Return a model, refusing one that lacks weights or has others."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not {key: value for key, value in info.items() if value}
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Return what a model says to two texts."""
    found: torch.Tensor = model(tokens() % model.config.vocab_size).logits
    return found
