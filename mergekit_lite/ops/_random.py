"""Random numbers by counter: entry i of a tensor draws the same on any tile, thread or device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from mergekit_lite.ops._place import Place

_LOW = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    # 0x846CA68B less 2^32: the same product modulo 2^32, but one that fits a signed 64-bit integer.
    x = (x * (0x846CA68B - (1 << 32))) & _LOW
    return x ^ (x >> 16)


def draws(index: Tensor, key: int) -> Tensor:
    """Return a uniform 32-bit integer for each int64 flat index, as int64.

    Order of operations, all modulo 2^32: lo, hi = the halves of the index; k0, k1 = those of the
    key; h = mix(lo + k0); h = mix(h ^ k1 ^ (hi * 0x9E3779B9)).
    """
    if not index.is_cuda:
        return _draws_on_host(index, key)
    low, high = index & _LOW, index >> 32
    first = _mix((low + (key & _LOW)) & _LOW)
    return _mix(first ^ (key >> 32) ^ ((high * 0x9E3779B9) & _LOW))


def _draws_on_host(index: Tensor, key: int) -> Tensor:
    """The same in 32-bit arithmetic, which wraps by itself and is several times faster."""
    import numpy as np
    import torch

    flat = index.reshape(-1).numpy()
    x = flat.astype(np.uint32)  # the low half
    x += np.uint32(key & _LOW)
    high = (flat >> 32).astype(np.uint32)
    high *= np.uint32(0x9E3779B9)
    for salt in (high, None):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        x ^= x >> np.uint32(16)
        if salt is not None:
            x ^= salt
            x ^= np.uint32(key >> 32)
    return torch.from_numpy(x.astype(np.int64)).reshape(index.shape)


def kept(tile: Tensor, place: Place, density: float) -> Tensor:
    """Return a mask that keeps each entry of `tile` with probability `density`."""
    return draws(place.index(tile), place.key) < round(density * 2**32)
