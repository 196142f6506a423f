"""What the forward pass asks of whatever collects statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from mergekit_lite.calibrate.skeleton import Place, Skeleton
from mergekit_lite.calibrate.tokens import Batch

if TYPE_CHECKING:
    from torch import Tensor


class Collector(Protocol):
    """Collects one kind of statistic, layer by layer."""

    kind: str

    def watch(self, place: Place) -> None:
        """Begin with a layer, whose weights are in memory."""

    def before(self, batch: Batch, hidden: Tensor) -> None:
        """Note the batch that runs next, and the hidden states that enter the layer with it."""

    def take(self) -> dict[str, Tensor]:
        """Return the statistics of the layer by name, and forget them."""

    @staticmethod
    def held(skeleton: Skeleton, samples: int, domains: int) -> int:
        """Return the bytes that the statistics of the largest layer take in memory."""


_ALONE: set[int] = set()


@contextmanager
def run_alone(module: Any) -> Iterator[None]:
    """While a collector runs experts by itself, others do not take these runs for the model's."""
    _ALONE.add(id(module))
    try:
        yield
    finally:
        _ALONE.discard(id(module))


def is_alone(module: Any) -> bool:
    """Return whether a collector runs these experts by itself."""
    return id(module) in _ALONE


def tokens_of(value: Tensor, mask: Tensor) -> Tensor:
    """Return what a module was given for each token, (tokens, width): nothing of the padding.

    Args:
        value: (samples, longest, width), or the same with the first two made one.
        mask: (samples, longest).
    """
    flat = value.reshape(-1, value.shape[-1])
    return flat[mask.reshape(-1).to(flat.device)]


def domains_of(batch: Batch) -> Tensor:
    """Return the domain of each token, in the order of `tokens_of`."""
    return batch.domains[:, None].expand(batch.mask.shape)[batch.mask]
