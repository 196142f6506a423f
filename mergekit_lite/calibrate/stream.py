"""The forward pass with one decoder layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.tokens import Batch
from mergekit_lite.calibrate.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor


class _Reached(Exception):
    """Leaves the model's forward pass with what was wanted of it."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Stream:
    """Runs a model layer by layer over all batches, and keeps their hidden states in between.

    The model's own forward pass is entered for each layer and batch, so masks, rotary embeddings
    and whatever else a layer is handed are the model's own; all other layers let hidden states
    pass. What is computed is what the model itself computes.

    Args:
        skeleton: the model.
        weights: what brings layers into memory.
        gradients: keep what gradients need, of single calls of `embedded`, `passed` and `logits`.
    """

    def __init__(self, skeleton: Skeleton, weights: Weights, *, gradients: bool = False) -> None:
        self.skeleton, self.weights, self.gradients = skeleton, weights, gradients
        self._active = -1
        self._held: Any = None
        self._ends = False
        self._whole = False
        self._tuple: int | None = None
        for place in skeleton.layers:
            self._wrap(place)

    def embed(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Return the hidden states that enter the first layer, (samples, longest, width) each.

        Embedding and head are taken out of memory afterwards.
        """
        self.weights.load(None)
        found = [self.embedded(batch) for batch in batches]
        self.weights.drop_vocabulary()
        return found

    def embedded(self, batch: Batch) -> Tensor:
        """Return the hidden states that enter the first layer with one batch."""
        self._active, self._held = 0, None
        return self._enter(batch, input_ids=batch.ids)

    def layers(
        self,
        batches: Sequence[Batch],
        hidden: list[Tensor],
        *,
        first: int = 0,
        watch: Callable[[Place], object] = lambda place: None,
        before: Callable[[Batch, Tensor], object] = lambda batch, hidden: None,
    ) -> Iterator[Place]:
        """Run layer after layer over all batches; yield each when all batches are through it.

        Args:
            batches: what to run.
            hidden: that enter layer `first`; replaced by those that leave each layer.
            first: layer to begin with.
            watch: called with a layer when its weights are in memory.
            before: called with each batch, and the hidden states that enter the layer, before it
                is run.
        """
        if first:
            self.learn_form()
        for place in self.skeleton.layers[first:]:
            self.weights.load(place.index)
            watch(place)
            self.run(place, batches, hidden, before=before)
            yield place
            self.weights.drop(place.index)

    def run(
        self,
        place: Place,
        batches: Sequence[Batch],
        hidden: list[Tensor],
        *,
        before: Callable[[Batch, Tensor], object] = lambda batch, hidden: None,
    ) -> None:
        """Run one layer, whose weights are in memory, over all batches; see `layers`."""
        for number, batch in enumerate(batches):
            before(batch, hidden[number])
            hidden[number] = self.passed(place, batch, hidden[number])

    def passed(self, place: Place, batch: Batch, hidden: Tensor) -> Tensor:
        """Return the hidden states that leave a layer, whose weights are in memory."""
        self._active, self._held = place.index, hidden.to(self.skeleton.device)
        try:
            return self._enter(batch, inputs_embeds=self._held)
        finally:
            self._held = None

    def logits(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Return the model's logits for hidden states that left the last layer.

        For each token of a language model, for each text of a model of labels. The weights outside
        the layers must be in memory.
        """
        found: Tensor = self.end(batch, hidden).logits
        return found

    def end(self, batch: Batch, hidden: Tensor) -> Any:
        """Return all that the model gives for hidden states that left the last layer."""
        self._active, self._ends = len(self.skeleton.layers) - 1, True
        self._held = hidden.to(self.skeleton.device)
        try:
            with self._mode():
                return self._call(batch, inputs_embeds=self._held)
        finally:
            self._held, self._ends = None, False

    def through(self, batch: Batch) -> Tensor:
        """Return the logits of all layers together, (samples, longest, vocabulary).

        All weights must be in memory; gradients are kept for those that ask for them.
        """
        self._whole = True
        try:
            found: Tensor = self._call(batch, input_ids=batch.ids).logits
            return found
        finally:
            self._whole = False

    def _wrap(self, place: Place) -> None:
        layer = place.module
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._whole:
                return own(*args, **kwargs)
            hidden, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if place.index != self._active:
                return self._passed(hidden)
            if self._held is None:
                raise _Reached(hidden)
            if self._ends:
                return self._passed(self._held)
            found = own(self._held, *args, **kwargs)
            self._tuple = len(found) if isinstance(found, tuple) else 0
            raise _Reached(found[0] if self._tuple else found)

        layer.forward = forward

    def learn_form(self) -> None:
        """Run one token through the first layer, to see whether layers return tuples.

        What is outside the layers must be in memory, but for the vocabulary.
        """
        import torch

        if self._tuple is not None:
            return
        one = torch.zeros((1, 1), dtype=torch.int64)
        batch = Batch(one, one == 0, one[0], (0,))
        states = [torch.zeros((1, 1, self.skeleton.width), dtype=self.skeleton.dtype)]
        self.weights.load(0)
        self.run(self.skeleton.layers[0], [batch], states)
        self.weights.drop(0)

    def _passed(self, hidden: Tensor) -> Any:
        """Return hidden states in the form in which this model's layers return theirs."""
        return (hidden, *[None] * (self._tuple - 1)) if self._tuple else hidden

    def _mode(self) -> Any:
        import torch

        return torch.enable_grad() if self.gradients else torch.inference_mode()

    def _enter(self, batch: Batch, **inputs: Any) -> Tensor:
        try:
            with self._mode():
                self._call(batch, **inputs)
        except _Reached as reached:
            found: Tensor = reached.value
            return found.to("cpu")
        raise RuntimeError("the forward pass ended before it came to its layer")

    def _call(self, batch: Batch, **inputs: Any) -> Any:
        device = self.skeleton.device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        mask = batch.mask.to(device).long()
        if batch.types is not None:
            inputs["token_type_ids"] = batch.types.to(device)
        return self.skeleton.model(**inputs, attention_mask=mask, use_cache=False)
