"""`masks`: entries that are plus, minus or zero, as two masks of bits with one scale."""

from __future__ import annotations

import numpy as np

from mergekit_lite.checkpoint.coded.grid import Fetch
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress._spec import scheme
from mergekit_lite.compress._types import Encoded, Floats, size_of
from mergekit_lite.compress.survey import reached
from mergekit_lite.kernels.bits import masks_tile


def encoded(delta: Floats, threshold: int, ties: int, *, scale: float) -> Encoded:
    """Return the signs of the entries whose magnitude reaches a threshold.

    Args:
        delta: all entries.
        threshold: bits of the least magnitude that is kept.
        ties: how many that equal it are kept, the first by flat index.
        scale: what signs are multiplied by.
    """
    kept = reached(delta, threshold, ties)
    minus = delta.view(np.uint32) >> np.uint32(31) != 0
    parts = {
        "plus": np.packbits(kept & ~minus, bitorder="little"),
        "minus": np.packbits(kept & minus, bitorder="little"),
    }
    return Encoded("masks", parts, {"scale": scale})


@scheme("masks", kernels=[masks_tile])
class Masks:
    """Reads the bytes of both masks that a range lies in."""

    def __init__(self, packed: Packed, fetch: Fetch) -> None:
        nbytes = -(-size_of(packed) // 8)
        self._masks = [packed.part(name, "U8", nbytes) for name in ("plus", "minus")]
        self._scale, self._fetch = packed.number("scale"), fetch

    def fill(self, first: int, out: Floats) -> None:
        begin, end = first // 8, -(-(first + out.size) // 8)
        plus, minus = np.empty(end - begin, np.uint8), np.empty(end - begin, np.uint8)
        for info, raw in zip(self._masks, (plus, minus), strict=True):
            self._fetch(info, begin, raw)
        masks_tile(plus, minus, first - 8 * begin, self._scale, out)
