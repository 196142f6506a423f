"""Singular directions of each matrix, the first with many bits and the later with few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from mergekit_lite.checkpoint import role_of
from mergekit_lite.compress._spec import CodecVector, codec
from mergekit_lite.compress._types import Delta, Encoded, Floats
from mergekit_lite.compress.grouped import Grid, rounded_by_gram, rounded_to_nearest
from mergekit_lite.compress.low_rank import Wanted, directions
from mergekit_lite.compress.schemes import bands
from mergekit_lite.ops._parameters import Doc, Range

if TYPE_CHECKING:
    from torch import Tensor

BANDS = ((8, 2), (3, 32))
"""Bits and ranks of the first bands; the last has 2 bits and what the budget leaves."""

_STRIPES = [[2.0 if (r < 8) == (c % 2 == 0) else -2.0 for c in range(32)] for r in range(16)]


def ranks(shape: tuple[int, ...], ratio: float) -> list[tuple[int, int]]:
    """Return bits and rank of each band of a matrix, within 16 / ratio bits an entry.

    Scales and zeros are not counted, as in the paper.
    """
    rows, width = shape
    budget = 16 / ratio * rows * width / (rows + width)
    left, found = min(shape), []
    for bits, most in (*BANDS, (2, left)):
        rank = min(most, left, int(budget // bits))
        if rank:
            found.append((bits, rank))
        budget, left = budget - bits * rank, left - rank
    return found


@codec(
    title="Delta-CoMe",
    paper="Ping et al. 2024, arXiv 2406.08903",
    vectors=[
        CodecVector(
            _STRIPES,
            _STRIPES,
            tolerance=0.05,
            source="by hand: one direction, whose entries have one magnitude",
        ),
        CodecVector([[4, -3, 1], [0.5, 0, -2]], None, name="model.embed_tokens.weight"),
        CodecVector([4, -3, 1], None, name="model.norm.weight"),
    ],
    calibrated=True,
)
def delta_come(
    delta: Delta,
    *,
    ratio: Annotated[
        float, Range(at_least=1), Doc("how many times fewer bits than 16 the factors have")
    ] = 16.0,
    group: Annotated[
        int, Range(at_least=1), Doc("entries of a factor's line that share a scale")
    ] = 128,
    damp: Annotated[
        float, Range(above=0), Doc("with a calibration: part of the Gram's diagonal added to it")
    ] = 0.01,
    embeddings: Annotated[
        bool, Doc("compress embeddings and heads too, in place of storing them whole")
    ] = False,
) -> Encoded | None:
    """Keep singular directions with fewer bits from band to band: 2 of 8, 32 of 3, the rest of 2.

    The last band takes what the budget of `16 / ratio` bits an entry leaves. Each band is of what
    those before it have missed, rounding included. Without a calibration every entry is rounded to
    nearest; with Gram matrices of the layers' inputs both factors are rounded by GPTQ, the right
    one against the inputs, the left one against what that makes of them. Norms, biases and, unless
    asked for, embeddings and heads are stored whole.
    """
    outer = role_of(delta.name) in ("embedding", "head")
    if not delta.is_matrix or (outer and not embeddings):
        return None
    import torch

    torch.set_num_threads(1)  # the same digits whatever the number of threads
    left = torch.from_numpy(delta.values).reshape(delta.shape).clone()
    gram = None if delta.gram is None else torch.from_numpy(delta.gram)
    found = []
    for bits, rank in ranks(delta.shape, ratio):
        u, s, v = directions(left, Wanted(rank), delta.name)
        if not len(s):
            break
        right = _rounded(v.numpy(), bits, group, gram, damp)
        seen = None if gram is None else _seen(right, s, gram)
        through = _rounded(u.numpy(), bits, group, seen, damp)
        found.append((through, s.numpy(), right))
        left -= _whole(through) * s @ _whole(right)
    encoded = bands.encoded(found, group)
    stored = sum(part.nbytes for part in encoded.parts.values())
    return encoded if found and stored < 2 * delta.values.size else None


def _rounded(matrix: Floats, bits: int, group: int, gram: Tensor | None, damp: float) -> Grid:
    if gram is None:
        return rounded_to_nearest(matrix, bits, group)
    return rounded_by_gram(matrix, bits, group, gram, damp)


def _whole(grid: Grid) -> Tensor:
    import torch

    return torch.from_numpy(grid.values())


def _seen(right: Grid, values: Tensor, gram: Tensor) -> Tensor:
    """Return the Gram of what the left factor sees: inputs through the right one."""
    through = (values[:, None] * _whole(right)).double()
    return through @ gram.double() @ through.T
