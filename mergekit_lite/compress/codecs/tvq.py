"""Every entry of a tensor as one of a few evenly spaced levels."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from mergekit_lite.compress._spec import CodecVector, codec
from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.compress.rounding import rounded
from mergekit_lite.compress.schemes import codes
from mergekit_lite.ops._parameters import Doc


@codec(
    title="Task vector quantisation",
    paper="Kim et al. 2025, arXiv 2503.06921",
    vectors=[
        CodecVector(
            [[6, -1, 1], [0.4, 0, 2.6]],
            [[6, -1, 1], [0, 0, 3]],
            {"bits": 3},
            source="by hand: levels from -1 to 6, one apart",
        ),
        CodecVector(
            [3, 1.4, 2.6], [3, 1, 3], {"bits": 2}, source="all above zero: levels from 0 to 3"
        ),
        CodecVector([-15, -7, 0], [-15, -7, 0], source="all below zero"),
    ],
)
def tvq(
    delta: Delta,
    *,
    bits: Annotated[Literal[2, 3, 4, 8], Doc("bits of an entry")] = 4,
) -> Encoded | None:
    """Round every entry of a tensor to one of `2 ** bits` levels from its least to its largest.

    The levels are shifted so that zero is one of them: entries that do not differ stay the base's.
    One scale and one zero serve a whole tensor, as in the paper; a few large entries coarsen all.
    """
    found = rounded(delta.values, bits)
    width = delta.shape[-1] if delta.shape else 1
    scale = np.array([[found.scale]], np.float32)
    return codes.encoded(found.codes, bits, scale, width, zero=found.zero)
