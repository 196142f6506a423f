"""Hidden states between layers, sample by sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.tokens import Batch, Samples
from mergekit_lite.calibrate.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor


class HiddenCollector:
    """Takes down what enters each decoder layer, for each sample in the order of the texts.

    Named after the layer (`model.layers.0`): `.last` (samples, d) at the last token, `.mean`
    (samples, d) over all tokens; `.domain` (samples) which domain, I64. Padding is left out.
    """

    kind = "hidden"

    def __init__(self, samples: Samples, weights: Weights) -> None:
        self._samples = samples.samples
        self._width, self._dtype = weights.skeleton.width, weights.skeleton.dtype
        self._name = ""

    def watch(self, place: Place) -> None:
        import torch

        self._name = place.name
        shape = (len(self._samples), self._width)
        self._last, self._mean = (torch.zeros(shape, dtype=self._dtype) for _ in range(2))

    def before(self, batch: Batch, hidden: Tensor) -> None:
        import torch

        rows = list(batch.rows)
        self._last[rows] = hidden[torch.arange(len(rows)), batch.last()]
        mask = batch.mask[..., None]
        total = (hidden.double() * mask).sum(1) / mask.sum(1)
        self._mean[rows] = total.to(self._dtype)

    def take(self) -> dict[str, Tensor]:
        import torch

        domains = torch.tensor([sample.domain for sample in self._samples])
        found = {"last": self._last, "mean": self._mean, "domain": domains}
        return {f"{self._name}.{key}": value for key, value in found.items()}

    @staticmethod
    def held(skeleton: Skeleton, samples: int, domains: int) -> int:
        """Return the bytes of two vectors a sample."""
        return 8 * samples * skeleton.width
