"""Where in a model an op is looking, and the statistics it asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Which entries of which tensor a tile holds.

    Attributes:
        name: output name of the tensor.
        start: flat index of the tile's first entry in the whole tensor; tiles are contiguous.
        size: number of entries of the whole tensor.
        layer: index of the tensor's layer, None outside the layers.
        layers: number of layers of the stack that the tensor is in.
        key: 64-bit random key of (seed, op, expert, tensor name).
        role: part that the tensor plays in the model, such as `embedding`; "" if unknown.
    """

    name: str = ""
    start: int = 0
    size: int = 0
    layer: int | None = None
    layers: int = 1
    key: int = 0
    role: str = ""

    def index(self, tile: Tensor) -> Tensor:
        """Return the flat index of every entry of `tile`, as int64 of the same shape."""
        import torch

        last = self.start + tile.numel()
        return torch.arange(self.start, last, device=tile.device).reshape(tile.shape)


def random_key(seed: int, op: str, expert: str, tensor: str) -> int:
    """Return the 64-bit key from which an op draws for one tensor of one expert."""
    text = "\0".join((str(seed), op, expert, tensor))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Cut:
    """The k-th largest magnitude of a tensor, made exact where magnitudes tie.

    An entry is among the k largest if its magnitude is above `threshold`, or equal to it with a
    flat index below `until`. k = 0 is (inf, 0).

    Attributes:
        threshold: an fp32 magnitude.
        until: flat index one past the last tied entry that belongs to the k largest.
    """

    threshold: float
    until: int

    def keeps(self, magnitude: Tensor, index: Tensor) -> Tensor:
        """Return the mask of the entries among the k largest."""
        tied = (magnitude == self.threshold) & (index < self.until)
        return (magnitude > self.threshold) | tied


@dataclass(frozen=True)
class Sums:
    """Exact-order fp64 sums over whole tensors.

    Attributes:
        absolute: sum of magnitudes of each input.
        gram: inner products; `gram[i][j]` is the dot product of inputs i and j.
        plain: sum of the entries of each input as they are.
    """

    absolute: tuple[float, ...] = ()
    gram: tuple[tuple[float, ...], ...] = field(default=())
    plain: tuple[float, ...] = ()
