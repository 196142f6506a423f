"""How many bytes a codec takes of a tensor, told from its shape alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from mergekit_lite.checkpoint import role_of
from mergekit_lite.compress.codecs.delta_come import ranks
from mergekit_lite.compress.packing import packed_bytes
from mergekit_lite.compress.schemes.rice import bits_for
from mergekit_lite.kernels.rice import BLOCK

Shape = tuple[int, ...]
Params = Mapping[str, Any]


def rice_bytes(size: int, share: float, each: int) -> float:
    """Return the bytes of entries that are kept at random places, on average.

    Args:
        size: of the tensor.
        share: of its entries that is kept.
        each: bits of a kept entry beside its place: 1 for a sign.
    """
    bits = bits_for(share)
    gap = bits + 1 / (1 - (1 - share) ** (1 << bits))
    blocks = -(-size // BLOCK)
    return share * size * (gap + each) / 8 + 8.5 * blocks


def _compeft(shape: Shape, params: Params) -> float:
    size = prod(shape)
    if params["form"] == "masks":
        return 2.0 * packed_bytes(size, 1)
    return rice_bytes(size, params["keep"], 1)


def _bitdelta(shape: Shape, params: Params) -> float:
    return packed_bytes(prod(shape), 1) + 4 * (shape[0] if params["scales"] == "row" else 1)


def _topk_sparse(shape: Shape, params: Params) -> float:
    size = prod(shape)
    return rice_bytes(size, max(params["keep"], 1 / size), 16)


def _intq(shape: Shape, params: Params) -> float:
    width = shape[-1] if shape else 1
    groups = -(-width // min(params["group"] or width, width))
    return packed_bytes(prod(shape), params["bits"]) + 4 * groups * (prod(shape) // width)


def _tvq(shape: Shape, params: Params) -> float:
    return packed_bytes(prod(shape), params["bits"]) + 4


def _ultradelta(shape: Shape, params: Params) -> float:
    return rice_bytes(prod(shape), params["keep"], params["bits"])


def _svd(shape: Shape, params: Params) -> float:
    width = 2 if params["dtype"] == "float16" else 4
    return float(width * min(params["rank"], *shape) * sum(shape))


def _lowrank_sparse(shape: Shape, params: Params) -> float:
    size = prod(shape)
    beside = rice_bytes(size, max(params["keep"], 1 / size), 16)
    return 2.0 * min(int(params["rank"]), *shape) * sum(shape) + beside


def _delta_come(shape: Shape, params: Params) -> float:
    rows, width = shape
    total = 0
    for bits, rank in ranks(shape, params["ratio"]):
        total += 4 * rank
        for lines, across in ((rows, rank), (rank, width)):
            groups = -(-across // params["group"])
            total += packed_bytes(lines * across, bits) + 3 * lines * groups
    return total


_MATRICES = {
    "bitdelta": _bitdelta,
    "delta_come": _delta_come,
    "lowrank_sparse": _lowrank_sparse,
    "svd": _svd,
    "ultradelta": _ultradelta,
}
_ALL: Mapping[str, Callable[[Shape, Params], float]] = {
    "compeft": _compeft,
    "intq": _intq,
    "topk_sparse": _topk_sparse,
    "tvq": _tvq,
}


def bytes_of(codec: str, params: Params, name: str, shape: Shape) -> float | None:
    """Return the bytes that a codec takes of a tensor that differs; None where it stores it whole.

    Exact where they follow from the shape; where places are coded, what random places take on
    average. Of `ultradelta` at most, because what it rounds to zero takes none.

    Args:
        codec: its name, one of this package's.
        params: all of its parameters.
        name: of the tensor.
        shape: of the tensor.
    """
    if codec in _ALL:
        return _ALL[codec](shape, params)
    outer = role_of(name) in ("embedding", "head") and not params.get("embeddings", True)
    if len(shape) != 2 or min(shape) < 2 or outer:
        return None
    found = _MATRICES[codec](shape, params)
    return found if found < 2 * prod(shape) else None
