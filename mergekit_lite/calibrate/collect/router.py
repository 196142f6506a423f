"""Router inputs by domain: what gates are fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergekit_lite.calibrate.collect._types import domains_of, tokens_of
from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.tokens import Batch, Samples
from mergekit_lite.calibrate.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor


class RouterCollector:
    """Sums over what enters each feed-forward network, which is what a router there is shown.

    For each of D domains, named after the feed-forward network (`model.layers.0.mlp`): `.gram`
    (D, d, d) X^T X; `.sum` (D, d); `.unit` (D, d) the sum of the inputs at norm 1; `.count` (D).
    Sums in fp64, stored in fp32 but for the counts.
    """

    kind = "router"

    def __init__(self, samples: Samples, weights: Weights) -> None:
        self._domains = len(samples.domains)
        self._width = weights.skeleton.width
        self._device = weights.skeleton.device
        self._batch: Batch | None = None
        self._handle: Any = None
        self._name = ""

    def watch(self, place: Place) -> None:
        import torch

        network = place.feed_forward()
        self._name = network[0] if network is not None else ""
        if network is None:
            return
        shapes = {
            "gram": (self._domains, self._width, self._width),
            "sum": (self._domains, self._width),
            "unit": (self._domains, self._width),
            "count": (self._domains,),
        }
        self._sums = {
            key: torch.zeros(shape, dtype=torch.float64, device=self._device)
            for key, shape in shapes.items()
        }
        self._handle = network[1].register_forward_pre_hook(self._add)

    def before(self, batch: Batch, hidden: Tensor) -> None:
        self._batch = batch

    def take(self) -> dict[str, Tensor]:
        import torch

        if self._handle is None:
            return {}
        self._handle.remove()
        self._handle = None
        types = {"count": torch.float64}
        return {
            f"{self._name}.{key}": value.to("cpu", types.get(key, torch.float32))
            for key, value in self._sums.items()
        }

    @staticmethod
    def held(skeleton: Skeleton, samples: int, domains: int) -> int:
        """Return the bytes of the sums of one layer."""
        return 12 * domains * skeleton.width * (skeleton.width + 2)

    def _add(self, module: Any, inputs: tuple[Any, ...]) -> None:
        import torch

        if self._batch is None:
            return
        rows = tokens_of(inputs[0], self._batch.mask).to(torch.float64)
        domains = domains_of(self._batch).to(rows.device)
        for domain in sorted(set(domains.tolist())):
            own = rows[domains == domain]
            self._sums["gram"][domain].addmm_(own.T, own)
            self._sums["sum"][domain] += own.sum(0)
            norms = own.norm(dim=1, keepdim=True).clamp(min=1e-30)
            self._sums["unit"][domain] += (own / norms).sum(0)
            self._sums["count"][domain] += len(own)
