"""The sign of every entry of the projections."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from mergekit_lite.checkpoint import role_of
from mergekit_lite.compress._spec import CodecVector, codec
from mergekit_lite.compress._types import Delta, Encoded
from mergekit_lite.compress.schemes import codes, masks
from mergekit_lite.ops._parameters import Doc


@codec(
    title="BitDelta",
    paper="Liu et al. 2024, arXiv 2402.10193",
    vectors=[
        CodecVector(
            [[4, -3, 1], [0.5, 0, -2]],
            [[1.75, -1.75, 1.75], [1.75, 1.75, -1.75]],
            source="the sign of zero is plus",
        ),
        CodecVector(
            [[4, -3, 2], [0.5, 1, -2]],
            [[3, -3, 3], [3.5 / 3, 3.5 / 3, -3.5 / 3]],
            {"scales": "row"},
        ),
        CodecVector(
            [[4, 0, 0], [0, -2, 0]], [[3, 0, 0], [0, -3, 0]],
            source="mostly zeros: they stay zero",
        ),
        CodecVector([[4, -3, 1], [0.5, 0, -2]], None, name="model.embed_tokens.weight"),
        CodecVector([4, -3, 1], None, name="model.norm.weight"),
    ],
)  # fmt: skip
def bitdelta(
    delta: Delta,
    *,
    scales: Annotated[
        Literal["tensor", "row"], Doc("one scale for a tensor (the paper), or for each row")
    ] = "tensor",
    embeddings: Annotated[
        bool, Doc("compress embeddings and heads too, in place of storing them whole")
    ] = False,
) -> Encoded | None:
    """Keep the sign of every entry of a matrix, times the mean magnitude.

    That is the scale of least squared error. The sign of zero is plus, as in the paper; a matrix
    of which more than half does not differ keeps its zeros instead and takes two bits an entry.
    Norms, biases and, unless asked for, embeddings and heads are stored whole.
    """
    outer = role_of(delta.name) in ("embedding", "head")
    if not delta.is_matrix or (outer and not embeddings):
        return None
    rows, width = delta.shape
    changed = int(np.count_nonzero(delta.values))
    magnitudes = np.abs(delta.values).reshape(delta.shape)
    if 2 * changed < delta.values.size:
        mean = float(magnitudes.sum(dtype=np.float64)) / changed
        return masks.encoded(delta.values, 0, 0, scale=mean)
    axis = 1 if scales == "row" else None
    mean = magnitudes.mean(axis=axis, dtype=np.float64).astype(np.float32)
    signs = (delta.values < 0).astype(np.uint8)
    return codes.encoded(signs, 1, mean.reshape(rows if scales == "row" else 1, 1), width)
