"""What every neuron matters to the loss of texts, with one decoder layer in memory at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit_lite.calibrate.collect._types import tokens_of
from mergekit_lite.calibrate.collect.inputs import InputCollector
from mergekit_lite.calibrate.run import Prepared
from mergekit_lite.calibrate.skeleton import Place, build
from mergekit_lite.calibrate.slopes import Slope, Slopes
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.errors import DataError
from mergekit_lite.moe.carve._layer import Seen

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mergekit_lite.sources import Model

_TOKENS = Slope("tokens", drawn=False, squares=True)
"""Gradients of the sum of all tokens' log-probabilities, in which each counts the same."""


def importances(
    prepared: Prepared, model: Model, folder: Path | None
) -> Iterator[tuple[int, Seen]]:
    """Yield what each feed-forward layer is shown, and how neurons matter, the last layer first.

    Texts run forth once, and what enters each layer is kept on disk; then layer by layer back, each
    run once more to see its inputs and once more for the gradient. The loss is the sum over all
    tokens of what the model gives the next one, in nats.

    Args:
        prepared: the model and its texts.
        model: its weights.
        folder: on whose disk hidden states are kept until the end; None: the system's.

    Raises:
        DataError: a layer has no feed-forward layer with a down projection.
    """
    plain = prepared.skeleton
    dtype = str(plain.dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        kept = _Kept(Path(scratch))
        left = _forth(prepared, model, kept)
        # Tensors of the forward pass cannot be differentiated, so this is a model of its own.
        skeleton = build(prepared.folder, device=str(plain.device), dtype=dtype)
        weights = Weights(skeleton, {"model": model})
        try:
            stream = Stream(skeleton, weights, gradients=True)
            weights.load(None)
            stream.learn_form()
            slopes = Slopes(stream, prepared.batches, _TOKENS).ends(left)
            weights.drop_vocabulary()
            for place in reversed(skeleton.layers):
                weights.load(place.index)
                step = _Step(stream, prepared, place, kept.take(place), slopes)
                yield place.index, Seen(step.inputs(), step.importance)
                if not step.done:
                    step.importance(np.zeros(prepared.samples.tokens, np.int64), 1)
                weights.drop(place.index)
        finally:
            weights.close()


def _forth(prepared: Prepared, model: Model, kept: _Kept) -> list[Tensor]:
    """Return what leaves the last layer, and keep what enters each."""
    weights = Weights(prepared.skeleton, {"model": model})
    try:
        stream = Stream(prepared.skeleton, weights)
        hidden = stream.embed(prepared.batches)
        kept.put(prepared.skeleton.layers[0], hidden)
        for place in stream.layers(prepared.batches, hidden):
            if place is not prepared.skeleton.layers[-1]:
                kept.put(prepared.skeleton.layers[place.index + 1], hidden)
    finally:
        weights.close()
    return [states.clone() for states in hidden]


@dataclass(frozen=True)
class _Kept:
    """Hidden states on disk.

    Attributes:
        folder: that they are in.
    """

    folder: Path

    def put(self, place: Place, hidden: list[Tensor]) -> None:
        for number, states in enumerate(hidden):
            np.save(self.folder / f"{place.index}-{number:08d}.npy", states.float().numpy())

    def take(self, place: Place) -> list[Tensor]:
        """Return what enters a layer, and forget it."""
        import torch

        files = sorted(self.folder.glob(f"{place.index}-*.npy"))
        found = [torch.from_numpy(np.load(file)) for file in files]
        for file in files:
            file.unlink()
        return found


@dataclass
class _Step:
    """One layer on the way back.

    Attributes:
        stream, prepared: the model and its texts.
        place: the layer, whose weights are in memory.
        entering: what enters it.
        slopes: gradients by what leaves it, which become those by what enters it.
        done: whether they have.
    """

    stream: Stream
    prepared: Prepared
    place: Place
    entering: list[Tensor]
    slopes: list[Tensor]
    done: bool = field(default=False, init=False)

    def inputs(self) -> NDArray[np.float32]:
        """Return what the feed-forward layer is shown, (tokens, d)."""
        watched = InputCollector(self.prepared.samples.tokens)
        watched.watch(self.place)
        for batch, entering in zip(self.prepared.batches, self.entering, strict=True):
            watched.before(batch, entering)
            self.stream.passed(self.place, batch, entering)
        found = watched.take()
        if not found:
            raise DataError(f"`{self.place.name}` has no feed-forward layer that is known here")
        inputs: NDArray[np.float32] = found["inputs"].detach().numpy()
        return inputs

    def importance(self, labels: NDArray[np.int64], groups: int) -> NDArray[np.float64]:
        """Return how much each neuron matters to each group of tokens; see `Seen`."""
        import torch

        shown: list[Tensor] = []
        down = self._down()
        handle = down.register_forward_pre_hook(lambda module, own: shown.append(own[0]))
        total = np.zeros((groups, down.in_features))
        first = 0
        try:
            for number, batch in enumerate(self.prepared.batches):
                entering = self.entering[number].requires_grad_()
                leaving = self.stream.passed(self.place, batch, entering)
                neurons = shown.pop()
                slope = self.slopes[number].to(leaving.dtype)
                found = torch.autograd.grad(leaving, [entering, neurons], slope)
                self.slopes[number] = found[0].float()
                matter = tokens_of((neurons.detach() * found[1]).abs(), batch.mask).double().cpu()
                np.add.at(total, labels[first : first + len(matter)], matter.numpy())
                first += len(matter)
        finally:
            handle.remove()
        self.done = True
        return total

    def _down(self) -> Any:
        network = self.place.feed_forward()
        if network is None or not hasattr(network[1], "down_proj"):
            raise DataError(f"`{self.place.name}` has no down projection that is known here")
        return network[1].down_proj
