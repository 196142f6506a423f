"""A product of low rank for each matrix, and the entries that it meets worst."""

from __future__ import annotations

from math import prod
from typing import Annotated

import numpy as np

from mergekit_lite.compress._spec import CodecVector, codec
from mergekit_lite.compress._types import Delta, Encoded, Floats, in_memory
from mergekit_lite.compress.low_rank import Wanted
from mergekit_lite.compress.low_rank import factors as low_rank
from mergekit_lite.compress.schemes import factors, rice
from mergekit_lite.compress.schemes.factors_sparse import both
from mergekit_lite.compress.survey import largest, reached
from mergekit_lite.ops._parameters import Doc, Range

_BLOCK_AND_ENTRY = [[3, 3, 0, 0], [3, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 9]]


@codec(
    title="Low rank and sparse",
    paper="the form of DSEE (Chen et al. 2023, arXiv 2111.00160), by GoDec (Zhou and Tao 2011)",
    vectors=[
        CodecVector(
            _BLOCK_AND_ENTRY,
            _BLOCK_AND_ENTRY,
            {"rank": 1, "keep": 0.0625},
            tolerance=5e-3,
            source="by hand: a block of rank 1 and one entry beside it",
        ),
        CodecVector([[3, 3, 0], [3, 3, 0], [0, 0, 9]], None, {"rank": 2}, source="takes more"),
        CodecVector([1, 2], None, source="no matrix"),
    ],
)
def lowrank_sparse(
    delta: Delta,
    *,
    rank: Annotated[int, Range(at_least=1), Doc("rank of each matrix, at most")] = 16,
    keep: Annotated[
        float,
        Range(above=0, below=1),
        Doc("part of a matrix's entries that stands beside the product; one at least"),
    ] = 0.005,
    rounds: Annotated[
        int, Range(at_least=1, at_most=100), Doc("how often both are fitted in turn")
    ] = 4,
) -> Encoded | None:
    """Keep a product of low rank and, of what it misses, the largest entries.

    In turn the entries are the largest of what the product misses, and the product is the best one
    of what the entries leave. Both are stored in fp16; the entries are chosen last, so that they
    make up for the rounding of the product too. DSEE trains them afterwards at places taken from
    the pretrained weights; here they are of the difference itself, and nothing is trained. What is
    no matrix, and a matrix that would take more than itself, is stored whole.
    """
    if not delta.is_matrix or rank * sum(delta.shape) >= prod(delta.shape):
        return None
    kept, rest = max(int(keep * delta.values.size), 1), delta.values
    product = _product(delta, _without_largest(rest, kept, delta.values), rank)
    for _ in range(rounds - 1):
        rest = delta.values - _decoded(delta, product)
        product = _product(delta, _without_largest(rest, kept, delta.values), rank)
    rest = delta.values - _decoded(delta, product)
    found = largest(rest, kept)
    scale = rice.scale_for(rest)
    sparse = rice.encoded(rest, found.threshold, found.kept, found.ties, scale=scale, signs=False)
    together = both(product, sparse)
    stored = sum(part.nbytes for part in together.parts.values())
    return together if stored < 2 * rest.size else None


def _product(delta: Delta, values: Floats, rank: int) -> Encoded:
    import torch

    torch.set_num_threads(1)  # the same digits whatever the number of threads
    matrix = torch.from_numpy(values).reshape(delta.shape)
    left, right = low_rank(matrix, Wanted(rank), delta.name)
    return factors.encoded(left.numpy(), right.numpy(), "float16")


def _decoded(delta: Delta, product: Encoded) -> Floats:
    out = np.zeros(delta.values.size, np.float32)
    factors.Factors(*in_memory(product, delta.name, delta.shape)).fill(0, out)
    return out


def _without_largest(rest: Floats, kept: int, values: Floats) -> Floats:
    """Return `values` less the largest entries of what a product has left of them."""
    found = largest(rest, kept)
    return values - np.where(reached(rest, found.threshold, found.ties), rest, np.float32(0))
