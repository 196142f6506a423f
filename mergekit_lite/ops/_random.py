"""Random numbers by counter: entry i of a tensor draws the same on any tile, thread or device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
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
    import numpy as np
    import torch

    found = host_draws(index.reshape(-1).numpy(), key)
    return torch.from_numpy(found.astype(np.int64)).reshape(index.shape)


def host_draws(index: NDArray[np.int64], key: int) -> NDArray[np.uint32]:
    """Return the same as `draws` in 32-bit arithmetic, which wraps by itself and is faster."""
    import numpy as np

    x = index.astype(np.uint32)  # the low half
    x += np.uint32(key & _LOW)
    high = (index >> 32).astype(np.uint32)
    high *= np.uint32(0x9E3779B9)
    for salt in (high, None):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x ^= x >> np.uint32(shift)
            x *= np.uint32(factor)
        x ^= x >> np.uint32(16)
        if salt is not None:
            x ^= salt
            x ^= np.uint32(key >> 32)
    return x


def uniforms(first: int, count: int, key: int) -> NDArray[np.float64]:
    """Return numbers evenly spread over (0, 1), one for each index from `first` on."""
    import numpy as np

    drawn = host_draws(np.arange(first, first + count, dtype=np.int64), key)
    even: NDArray[np.float64] = (drawn + np.float64(0.5)) / np.float64(2.0**32)
    return even


def normals(first: int, count: int, key: int) -> NDArray[np.float64]:
    """Return standard normal numbers, one for each index from `first` on.

    Number i comes from the uniform numbers 2i and 2i + 1 (Box-Muller), in fp64, so that rounding
    to fp32 hides how a processor takes logarithms.
    """
    import numpy as np

    pairs = uniforms(2 * first, 2 * count, key).reshape(-1, 2)
    return np.sqrt(-2.0 * np.log(pairs[:, 0])) * np.cos(2.0 * np.pi * pairs[:, 1])


def kept(tile: Tensor, place: Place, density: float) -> Tensor:
    """Return a mask that keeps each entry of `tile` with probability `density`."""
    return draws(place.index(tile), place.key) < round(density * 2**32)
