"""The sign of every entry of the projections."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from mergekit_lite.checkpoint import role_of
from mergekit_lite.compress._spec import CodecVector, codec
from mergekit_lite.compress._types import Delta, Encoded, Floats
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
    calibrated=True,
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

    With a calibration the scale is that of least squared error of the layer's outputs: with the
    Gram matrix G of its inputs, <signs G, difference> / <signs G, signs>, of the tensor or of each
    row. The paper instead trains all scales together on the model's logits.
    """
    outer = role_of(delta.name) in ("embedding", "head")
    if not delta.is_matrix or (outer and not embeddings):
        return None
    rows, width = delta.shape
    changed = int(np.count_nonzero(delta.values))
    magnitudes = np.abs(delta.values).reshape(delta.shape)
    if 2 * changed < delta.values.size:
        over_all = float(magnitudes.sum(dtype=np.float64)) / changed
        return masks.encoded(delta.values, 0, 0, scale=over_all)
    by_row = scales == "row"
    axis = 1 if by_row else None
    if delta.gram is not None:
        mean = _distilled(delta, axis)
    else:
        mean = magnitudes.mean(axis=axis, dtype=np.float64).astype(np.float32)
    signs = (delta.values < 0).astype(np.uint8)
    return codes.encoded(signs, 1, mean.reshape(rows if by_row else 1, 1), width)


def _distilled(delta: Delta, axis: int | None) -> Floats:
    """Return the scales by which signs come nearest to the outputs of the difference."""
    import torch

    torch.set_num_threads(1)  # the same digits whatever the number of threads
    values = torch.from_numpy(delta.values).reshape(delta.shape).double()
    signs = torch.where(values < 0, -1.0, 1.0).double()
    through = signs @ torch.from_numpy(np.asarray(delta.gram)).double()
    wanted, own = ((through * one).numpy().sum(axis=axis) for one in (values, signs))
    plain = values.abs().numpy().mean(axis=axis)
    # Inputs that were all zero say nothing of a row.
    found = np.divide(wanted, own, out=np.array(plain), where=own > 0)
    return np.asarray(found, np.float32)
