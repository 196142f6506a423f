"""The entropy of a merged model's predictions, and its slope along every task vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.calibrate.tokens import batches
from mergekit_lite.plan.types import Plan
from mergekit_lite.quality.data import Texts
from mergekit_lite.quality.forward import taker
from mergekit_lite.quality.sequences import as_samples, pieces
from mergekit_lite.search.held import Held

if TYPE_CHECKING:
    from torch import Tensor

Vectors = Mapping[str, "Sequence[Tensor]"]
"""Name of a parameter -> its value in the base, then each expert's difference to it."""


def vectors_of(model: Held, plans: Sequence[Plan]) -> Vectors:
    """Return base and task vectors, as the parameters of the model in memory.

    Args:
        model: that candidates are merged into.
        plans: of the base alone, then of each expert alone with weight 1, all in fp32.
    """
    found: dict[str, list[Tensor]] = {}
    for plan in plans:
        model.touched()
        model.merge(plan)
        for name, parameter in model.skeleton.model.named_parameters():
            value = parameter.detach().clone()
            seen = found.setdefault(name, [])
            seen.append(value - seen[0] if seen else value)
    return found


class Entropy:
    """Mean entropy of the next token on texts, as a function of weights by layer and expert.

    Args:
        model: in memory, in fp32.
        vectors: base and task vectors of its parameters.
        texts: what is predicted; the tokens that there are do not count.
    """

    def __init__(self, model: Held, vectors: Vectors, texts: Sequence[Texts]) -> None:
        self._model, self._vectors = model, vectors
        skeleton = model.skeleton
        self._pieces = pieces(texts, model.loaded.tokenizer, taker("candidate", skeleton))
        self._batches = batches(as_samples(self._pieces), size=1, in_order=True)
        self._predicted = sum(len(piece.ids) - piece.start for piece in self._pieces)
        prefixes = [f"{place.name}." for place in skeleton.layers]
        self._group = {
            name: next((n for n, p in enumerate(prefixes) if name.startswith(p)), len(prefixes))
            for name in vectors
        }
        self.value = 0.0
        """Nats for a token, where the slope was last asked for."""

    def slope(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the derivative by every weight, (layers + 1, experts), the last row for the rest.

        Gradients are multiplied with the task vectors while they come, a parameter at a time.
        """
        self._put(weights)
        found = np.zeros_like(weights)
        parameters = dict(self._model.skeleton.model.named_parameters())
        hooks = [self._watch(name, parameters[name], found) for name in self._vectors]
        try:
            self.value = sum(self._of_piece(number) for number in range(len(self._pieces)))
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in parameters.values():
                parameter.requires_grad_(False)
        return found

    def _put(self, weights: NDArray[np.float64]) -> None:
        import torch

        parameters = dict(self._model.skeleton.model.named_parameters())
        with torch.no_grad():
            for name, (base, *deltas) in self._vectors.items():
                value = base.clone()
                for weight, delta in zip(weights[self._group[name]], deltas, strict=True):
                    value += float(weight) * delta
                parameters[name].copy_(value)
        self._model.touched()

    def _watch(self, name: str, parameter: Any, found: NDArray[np.float64]) -> Any:
        deltas, group = self._vectors[name][1:], self._group[name]
        moves = [expert for expert, delta in enumerate(deltas) if bool(delta.any())]
        parameter.requires_grad_(bool(moves))

        def take(given: Any) -> None:
            for expert in moves:
                along = (given.grad * deltas[expert]).double().sum()
                found[group, expert] += float(along)
            given.grad = None

        if not moves:
            return _Nothing()
        return parameter.register_post_accumulate_grad_hook(take)

    def _of_piece(self, number: int) -> float:
        import torch

        start = self._pieces[number].start
        logits = self._model.loaded.stream.through(self._batches[number])[0, start - 1 : -1]
        said = torch.log_softmax(logits.float(), 1)
        entropy = -(said.exp() * said).sum() / max(self._predicted, 1)
        if entropy.requires_grad:
            torch.autograd.backward(entropy)
        return float(entropy.detach())


class _Nothing:
    """A hook that was not needed."""

    def remove(self) -> None:
        """Do nothing."""
