"""The biases of experts that are switched on or off, for rows that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergekit_lite.plan.types import GATE
from mergekit_lite.sources import Model, resolve


def with_switched(models: Mapping[str, Model], folder: Path) -> dict[str, Model]:
    """Return the models with the two biases among them.

    Args:
        models: inputs of the plan, opened.
        folder: where a file may be made.
    """
    import numpy as np

    from mergekit_lite.moe.gate_file import GATE_FILE, write_tensors
    from mergekit_lite.moe.switch.settle import SWITCHED

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / GATE_FILE
    unfinished = path.with_suffix(".partial")
    made = {word: np.full((1,), value, np.float32) for word, value in SWITCHED.items()}
    write_tensors(unfinished, made, {})
    unfinished.replace(path)
    return {**models, GATE: replace(resolve(str(path), relative_to=folder), reference=GATE)}


def switched_text(switched: Mapping[str, Any]) -> str:
    """Return which experts are switched, in words."""
    said = [
        f"{word}: " + "; ".join(f"layer {layer}: {_listed(own)}" for layer, own in layers.items())
        for word, layers in switched.items()
        if layers
    ]
    return f"Experts switched by the bias of their routers, {', '.join(said)}."


def _listed(experts: list[int]) -> str:
    return ", ".join(map(str, experts))
