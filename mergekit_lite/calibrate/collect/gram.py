"""Gram matrices of the inputs of linear layers, which `regmean` and `lot` read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.collect._types import tokens_of
from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.tokens import Batch, Samples
from mergekit_lite.calibrate.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor


class GramCollector:
    """Sums X^T X over the inputs X of each linear layer, in fp64, padding left out.

    Layers that are handed the same input (queries, keys and values) share one sum. What is
    returned is divided by the number of inputs, named like the stored weight, in fp32. Routed
    experts have none: their matrices are no linear layers of their own in transformers.
    """

    kind = "gram"

    def __init__(self, samples: Samples, weights: Weights) -> None:
        self._stored = weights.stored
        self._handles: list[Any] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._shared: dict[str, str] = {}
        self._last: tuple[Any, str] = (None, "")
        self._batch: Batch | None = None

    def watch(self, place: Place) -> None:
        for name, module in place.linears():
            hook = module.register_forward_pre_hook(self._hook(name))
            self._handles.append(hook)

    def before(self, batch: Batch, hidden: Tensor) -> None:
        self._batch, self._last = batch, (None, "")

    def take(self) -> dict[str, Tensor]:
        import torch

        for handle in self._handles:
            handle.remove()
        found = {}
        for name, owner in self._shared.items():
            gram = (self._sums[owner] / self._counts[owner]).to("cpu", torch.float32)
            for stored in self._stored.get(f"{name}.weight", ()):
                found[stored] = gram
        self._handles, self._sums, self._counts, self._shared = [], {}, {}, {}
        return found

    @staticmethod
    def held(skeleton: Skeleton, samples: int, domains: int) -> int:
        """Return the bytes of the sums of one layer, each input counted once."""
        widths = {
            (name.rpartition(".")[0], module.in_features)
            for place in skeleton.layers
            for name, module in place.linears()
            if place.index == len(skeleton.layers) - 1
        }
        return 12 * sum(width * width for _, width in widths)

    def _hook(self, name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            self._add(name, inputs[0])

        return hook

    def _add(self, name: str, value: Tensor) -> None:
        import torch

        if self._batch is None or value.numel() // value.shape[-1] != self._batch.mask.numel():
            return
        held, owner = self._last
        if held is value:
            self._shared[name] = owner
            return
        self._last = (value, name)
        self._shared[name] = name
        rows = tokens_of(value, self._batch.mask).to(torch.float64)
        if name not in self._sums:
            width = rows.shape[1]
            self._sums[name] = torch.zeros((width, width), dtype=torch.float64, device=rows.device)
        self._sums[name].addmm_(rows.T, rows)
        self._counts[name] = self._counts.get(name, 0) + len(rows)
