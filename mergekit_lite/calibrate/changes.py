"""What an expert changes of the base's feed-forward layers, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.collect.inputs import InputCollector
from mergekit_lite.calibrate.experts import DenseView
from mergekit_lite.calibrate.run import Prepared, measure
from mergekit_lite.calibrate.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]

CHUNK = 1024
"""Tokens that are looked at together."""


def changes_of(
    prepared: Prepared, view: DenseView, expert: int
) -> Iterator[tuple[int, Array, Array]]:
    """Run texts through one expert; yield layer, inputs, and how much it changes for each token.

    Inputs are (tokens, d); the change is the squared norm of what the expert's feed-forward layer
    says less what the base's would. The layer is in memory when it is yielded, with the base's
    feed-forward layer beside it; no other.

    Args:
        prepared: the model and the texts.
        view: where the weights of both are.
        expert: which.
    """
    own = Weights(prepared.skeleton, view.models, view.place(expert))
    base = Weights(prepared.skeleton, view.models, view.place(None))
    kept = InputCollector(prepared.samples.tokens)
    try:
        for layer, found, _ in measure(prepared, own, [], more=[kept]):
            network = prepared.skeleton.layers[layer].feed_forward()
            if network is None or layer not in view.layers:
                continue
            before = {
                part: base.read(view.dense_name(layer, part)).to(prepared.skeleton.device)
                for part in ("gate", "up", "down")
            }
            inputs = found["inputs"]["inputs"]
            loud = _loudness(network[1], before, inputs, prepared.skeleton.device)
            yield layer, inputs.double().numpy(), loud
    finally:
        own.close()
        base.close()


def _loudness(network: Any, before: Mapping[str, Tensor], inputs: Tensor, device: Any) -> Array:
    import torch
    from torch.nn.functional import linear, silu

    found = []
    with torch.inference_mode():
        for first in range(0, len(inputs), CHUNK):
            rows = inputs[first : first + CHUNK].to(device)
            inner = silu(linear(rows, before["gate"])) * linear(rows, before["up"])
            change = network(rows[None])[0] - linear(inner, before["down"])
            found.append(change.double().square().sum(1).cpu())
    whole: Array = torch.cat(found).numpy()
    return whole
