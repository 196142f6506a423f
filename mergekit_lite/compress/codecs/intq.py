"""Every entry as a small integer with a scale for its group."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from mergekit_lite.compress._spec import CodecVector, codec
from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.compress.schemes import codes
from mergekit_lite.ops._parameters import Doc, Range


@codec(
    title="Integers",
    paper="the plain baseline: symmetric quantisation to nearest",
    vectors=[
        CodecVector([[7, -3.4, 1], [0.7, 0, -0.2]], [[7, -3, 1], [0.7, 0, -0.2]], {"bits": 4}),
        CodecVector([[4, -1, 1, 3]], [[4, 0, 0, 3]], {"bits": 2, "group": 2}, source="groups"),
        CodecVector([127, -64, 0.4], [127, -64, 0], {"bits": 8, "group": 128}),
    ],
)
def intq(
    delta: Delta,
    *,
    bits: Annotated[Literal[2, 4, 8], Doc("bits of an entry")] = 4,
    group: Annotated[
        int, Range(at_least=0), Doc("entries of a row that share a scale; 0 for whole rows")
    ] = 0,
) -> Encoded | None:
    """Round every entry to one of `2 ** bits - 1` levels, symmetric about zero.

    The scale of a row, or of each group of it, is its largest magnitude over the largest level;
    scales are fp32. A row that is shorter than a group is one group; so is what is left at its end.
    """
    width = delta.shape[-1] if delta.shape else 1
    across = min(group or width, width)
    groups, rows = -(-width // across), delta.values.size // width
    padded = np.zeros((rows, groups * across), np.float32)
    padded[:, :width] = delta.values.reshape(rows, width)
    cells = padded.reshape(rows, groups, across)
    top = np.float32((1 << (bits - 1)) - 1)
    scales = np.abs(cells).max(axis=2) / top
    divisors = np.where(scales > 0, scales, np.float32(1))
    levels = np.clip(np.rint(cells / divisors[:, :, None]), -top, top)
    whole = (levels + np.float32(1 << (bits - 1))).astype(np.uint8).reshape(rows, -1)
    return codes.encoded(whole[:, :width].reshape(-1), bits, scales, across)
