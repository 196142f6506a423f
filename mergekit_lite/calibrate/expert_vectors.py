"""Texts as vectors: what the routers of a routed model make of them, and its last hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.calibrate.run import Prepared, measure
from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.tokens import Batch
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.errors import RecipeError
from mergekit_lite.moe.compat.loaders import SIGMOID

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TextVectors:
    """The vectors of some texts, in their order (MoEE, arXiv 2410.10814).

    Attributes:
        routing: (texts, layers x experts) probabilities of all routers at the last token.
        hidden: (texts, d) what enters the head at the last token.
    """

    routing: Floats
    hidden: Floats

    def joined(self) -> Floats:
        """Return both side by side, each entry at mean 0 and spread 1 over the texts."""
        return np.concatenate([standardised(self.hidden), standardised(self.routing)], axis=1)

    def similarities(self, alpha: float = 1.0) -> Floats:
        """Return the cosines of hidden states, plus alpha times those of routings, (texts, texts).

        The paper prefers this sum to one vector of both.
        """
        return _cosines(self.hidden) + np.float32(alpha) * _cosines(self.routing)


def standardised(vectors: Floats) -> Floats:
    """Return vectors whose entries have mean 0 and spread 1 over the texts; constant ones are 0."""
    centred = vectors - vectors.mean(0, dtype=np.float64)
    spread = centred.std(0)
    found: Floats = np.divide(
        centred, spread, out=np.zeros_like(centred), where=spread > 1e-12
    ).astype(np.float32)
    return found


def _cosines(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norms, np.float32(1e-30))
    found: Floats = unit @ unit.T
    return found


def text_vectors(prepared: Prepared, weights: Weights) -> TextVectors:
    """Run texts through a routed model, one layer in memory at a time.

    Args:
        prepared: the model and its texts.
        weights: of that model.

    Raises:
        RecipeError: the model has no routers.
    """
    routing = _Routing(prepared)
    states: list[Tensor] = []
    for _, _, found in measure(prepared, weights, [], more=[routing]):
        states = found
    if not routing.found:
        raise RecipeError("the model has no routers", hint="give a routed model")
    weights.load(None)
    hidden = _last_states(Stream(prepared.skeleton, weights), prepared, states)
    return TextVectors(np.concatenate(routing.found, axis=1), hidden)


def _last_states(stream: Stream, prepared: Prepared, states: list[Tensor]) -> Floats:
    """Return what enters the head at the last token of each text."""
    import torch

    found = np.zeros((len(prepared.samples.samples), prepared.skeleton.width), np.float32)
    entered: list[Tensor] = []
    head = stream.skeleton.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    try:
        for batch, state in zip(prepared.batches, states, strict=True):
            stream.logits(batch, state)
            rows = torch.arange(len(batch.rows))
            found[list(batch.rows)] = entered.pop().cpu().float()[rows, batch.last()].numpy()
    finally:
        hook.remove()
    return found


class _Routing:
    """Takes down the probabilities of each router at the last token of each text."""

    kind = "routing"

    def __init__(self, prepared: Prepared) -> None:
        self._texts = len(prepared.samples.samples)
        self._sigmoid = prepared.skeleton.model.config.model_type in SIGMOID
        self._batch: Batch | None = None
        self._handle: Any = None
        self._rows: Floats | None = None
        self.found: list[Floats] = []

    def watch(self, place: Place) -> None:
        router = place.router()
        if router is not None:
            self._handle = router[1].register_forward_hook(self._seen)

    def before(self, batch: Batch, hidden: Tensor) -> None:
        self._batch = batch

    def take(self) -> dict[str, Tensor]:
        if self._handle is not None:
            self._handle.remove()
        if self._rows is not None:
            self.found.append(self._rows)
        self._handle = self._rows = None
        return {}

    @staticmethod
    def held(skeleton: Skeleton, samples: int, domains: int) -> int:
        """Return the bytes of a layer's probabilities: an upper bound for 1024 experts."""
        return 4 * 1024 * samples

    def _seen(self, module: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        import torch

        if self._batch is None:
            return
        logits = output[0].reshape(*self._batch.mask.shape, -1).float().cpu()
        last = logits[torch.arange(len(logits)), self._batch.last()]
        if self._sigmoid:
            scores = last.sigmoid()
            chances = scores / scores.sum(1, keepdim=True).clamp(min=1e-30)
        else:
            chances = last.softmax(1)
        if self._rows is None:
            self._rows = np.zeros((self._texts, chances.shape[1]), np.float32)
        self._rows[list(self._batch.rows)] = chances.numpy()
