"""The way back: statistics of gradients from the last layer to the first, resumable by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mergekit_lite.calibrate.skeleton import Skeleton, build
from mergekit_lite.calibrate.slopes import SLOPES, Slope, Slopes
from mergekit_lite.calibrate.store import Store
from mergekit_lite.calibrate.stream import Stream
from mergekit_lite.calibrate.weights import Weights
from mergekit_lite.errors import DataError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.calibrate.run import Prepared
    from mergekit_lite.sources import Model


def require_head(skeleton: Skeleton, kinds: Sequence[str]) -> None:
    """Check that a model says something that gradients can be taken of.

    Raises:
        RecipeError: it has no head, or the kind wants the tokens of a text predicted.
    """
    for kind in kinds:
        if kind not in SLOPES or skeleton.head == "language":
            continue
        if skeleton.head == "none" or not SLOPES[kind].drawn:
            what = f"`{kind}` wants a model that predicts the next token"
            wanted = " or gives texts labels" if SLOPES[kind].drawn else ""
            raise RecipeError(f"{what}{wanted}", "--collect", "collect it on a model with a head")


def run_back(
    prepared: Prepared,
    model: Model,
    kind: str,
    store: Store,
    first: int,
    tell: Callable[[str], object],
) -> None:
    """Run gradients of one kind back through the model, into the store.

    The hidden states between all layers are in the store. A model of its own is built, as tensors
    of the forward pass cannot be differentiated.

    Args:
        prepared: model and texts.
        model: its weights.
        kind: of the statistic.
        store: where its sums go.
        first: steps that are done before the first of these: the end, each layer, what is outside.
        tell: called with sentences on how far it is.

    Raises:
        DataError: no text has a token to predict.
    """
    plain = prepared.skeleton
    dtype = str(plain.dtype).removeprefix("torch.")
    skeleton = build(prepared.folder, device=str(plain.device), dtype=dtype)
    weights = Weights(skeleton, {"model": model})
    try:
        _Back(prepared, store, weights, SLOPES[kind], first, tell).run()
    finally:
        weights.close()


class _Back:
    """One way back, from where it was left."""

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        weights: Weights,
        slope: Slope,
        first: int,
        tell: Callable[[str], object],
    ) -> None:
        self.store, self.weights, self.kind = store, weights, slope.kind
        self.first, self.tell = first, tell
        self.skeleton = weights.skeleton
        self.layers = len(self.skeleton.layers)
        self.stream = Stream(self.skeleton, weights, gradients=True)
        self.slopes = Slopes(self.stream, prepared.batches, slope)
        if not self.slopes.labels:
            raise DataError("there is one token, and nothing to predict", hint="give longer texts")

    def run(self) -> None:
        """Do all steps that are not done."""
        self.weights.load(None)
        self.stream.learn_form()
        self.weights.load(0)
        shared = self.slopes.shared(self.skeleton.layers[0])
        self.weights.drop(0)
        gradients = self._ends()
        self.weights.drop_vocabulary()
        for index in reversed(range(self.layers - max(self._done - 1, 0))):
            self._layer(index, gradients)
        self.weights.load(None)
        left = self.store.states(f"hidden-{self.layers}")
        sums = self.slopes.outside(left, gradients, shared)
        self.store.put(None, self.kind, named(sums, self.weights))
        self.store.note(self.first + self.layers + 2)

    @property
    def _done(self) -> int:
        return self.store.done - self.first

    def _ends(self) -> list[Tensor]:
        """Return the gradients of the layer that comes next, made now or kept."""
        if self._done > 0:
            return self.store.states(f"{self.kind}-{self.layers + 1 - self._done}")
        found = self.slopes.ends(self.store.states(f"hidden-{self.layers}"))
        self.store.keep_states(self.first + 1, f"{self.kind}-{self.layers}", found)
        return found

    def _layer(self, index: int, gradients: list[Tensor]) -> None:
        self.weights.load(index)
        place = self.skeleton.layers[index]
        sums = self.slopes.layer(place, self.store.states(f"hidden-{index}"), gradients)
        self.store.put(index, self.kind, named(sums, self.weights))
        self.weights.drop(index)
        done = self.first + 1 + self.layers - index
        name = f"{self.kind}-{index}"
        self.store.keep_states(done, name, gradients, forget=f"{self.kind}-{index + 1}")
        self.tell(f"{self.kind}: back through layer {index + 1} of {self.layers}")


def named(found: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
    """Return statistics of weights under the names, and in the shapes, that they are stored in.

    Args:
        found: by names of transformers.
        weights: that know the stored names.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = next(iter(weights.models.values()))
    stored = {name: info.shape for name, info in model.header.tensors.items()}
    named, others = {}, {}
    for name, value in found.items():
        names = weights.stored.get(name, [])
        if len(names) == 1 and tuple(stored[names[0]]) == tuple(value.shape):
            named[names[0]] = value
        else:
            others[name] = value
    back = revert_weight_conversion(weights.skeleton.model, others) if others else {}
    named |= {n: v for n, v in back.items() if tuple(stored.get(n, ())) == tuple(v.shape)}
    return named
