"""Runs a checkpoint in llama.cpp, and says how far it is from transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.moe.dense import logits, tokens
from tests.runtime.gguf_file import write

ROUNDING = 2e-5
"""Logits of these models have a spread of about 1.2; sums are taken in another order."""


def run(folder: Path) -> torch.Tensor:
    """Return llama.cpp's logits; its keys and values are kept in fp32, by default it is fp16.

    Raises:
        ValueError: it does not load the model.
    """
    import llama_cpp

    found = []
    model = llama_cpp.Llama(
        model_path=str(write(folder, folder.parent / f"{folder.name}.gguf")),
        n_ctx=64,
        n_threads=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    for row in tokens().tolist():
        model.reset()
        model.eval(row)
        found.append(np.array(model.scores[: len(row)]))
    model.close()
    return torch.from_numpy(np.stack(found))


def apart(folder: Path, other: Path | None = None) -> float:
    """Return the largest difference between a model here and it, or another, in transformers."""
    return float((run(folder) - logits(other or folder)).abs().max())


def verdict(folder: Path) -> str:
    """Return what llama.cpp does with a model, in the words of `check-compat`."""
    try:
        distance = apart(folder)
    except ValueError:
        return "fails"
    if np.isnan(distance):
        return "fails"
    return "same" if distance < ROUNDING else "differs"
