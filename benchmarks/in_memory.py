"""The zoo's base in memory, into which merges are put to score them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from intervals import Scores, Windows
from safetensors.torch import load_file

from mergekit_lite.calibrate.windows import windows
from mergekit_lite.sources.zoo import zoo_folder
from mergekit_lite.zoo.catalog import held_out_text
from mergekit_lite.zoo.score import bits, load

Weights = Mapping[str, torch.Tensor]


class Host:
    """The base as a model that any merge's weights can be put into.

    Args:
        domains: whose held-out text is scored.
        window_bytes: size of a window.
    """

    def __init__(self, domains: Sequence[str], window_bytes: int) -> None:
        self.model, self.tokenizer = load(zoo_folder("zoo:smol"))
        self.base = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.texts = {
            (domain, split): [
                window
                for window in windows(
                    held_out_text(domain, split).read_text(encoding="utf-8"), window_bytes
                )
                if len(window.encode()) >= window_bytes
            ]
            for domain in domains
            for split in ("validation", "test")
        }

    def put(self, merged: Weights, scale: float = 1.0) -> None:
        """Make the model base + scale * (merged - base), rounded to bfloat16 as a recipe's is.

        Args:
            merged: fp32 weights of a merge.
            scale: of its difference to the base; 1 takes `merged` as it is.
        """
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if name not in merged:
                    continue
                wanted = merged[name]
                if scale != 1:
                    wanted = self.base[name] + scale * (wanted - self.base[name])
                value.copy_(wanted.to(torch.bfloat16))

    def score(self, split: str, count: int, *, skip: int = 0) -> dict[str, Windows]:
        """Return what the model needs for windows of every domain.

        Args:
            split: `validation` or `test`.
            count: windows of each domain.
            skip: windows to leave out before them.
        """
        found = {}
        for (domain, of), texts in self.texts.items():
            if of == split:
                taken = texts[skip : skip + count]
                needed = tuple(bits(self.model, self.tokenizer, text) for text in taken)
                found[domain] = Windows(needed, tuple(len(text.encode()) for text in taken))
        return found


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return all weights of a merge."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def record(scores: Scores) -> dict[str, Any]:
    """Return scores as JSON."""
    return {"scores": {d: {"bits": w.bits, "nbytes": w.nbytes} for d, w in scores.items()}}


def scores_of(row: Mapping[str, Any]) -> dict[str, Windows]:
    """Return scores from their JSON."""
    return {
        domain: Windows(tuple(value["bits"]), tuple(value["nbytes"]))
        for domain, value in row["scores"].items()
    }


def best_scale(loss: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """Return the scale of least loss, and every loss that was looked at.

    0.5, 1 and 2 are tried, further ones while the best is at an edge, and last the vertex of the
    parabola through the best and its neighbours, over the logarithm.
    """
    tried = {scale: loss(scale) for scale in (0.5, 1.0, 2.0)}
    best = min(tried, key=lambda scale: tried[scale])
    while best in (min(tried), max(tried)) and 0.1 < best < 8:
        further = best * 2 if best == max(tried) else best / 2
        tried[further] = loss(further)
        best = min(tried, key=lambda scale: tried[scale])
    if best / 2 in tried and best * 2 in tried:
        low, middle, high = tried[best / 2], tried[best], tried[best * 2]
        bend = low - 2 * middle + high
        vertex = round(best * 2 ** ((low - high) / (2 * bend)), 2) if bend > 0 else best
        if not math.isclose(vertex, best):
            tried[vertex] = loss(vertex)
    return min(tried, key=lambda scale: tried[scale]), tried
