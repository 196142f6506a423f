"""`product(LEFT,RIGHT)`: a matrix as the product of two, each stored in a scheme of its own.

Parts and numbers of the factors begin with `left.` and `right.`; `rank` is told beside them.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_lite.checkpoint.coded.grid import Fetch, fetched
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.compress._spec import SCHEMES
from mergekit_lite.compress._types import Encoded, Floats, Scheme
from mergekit_lite.errors import DataError
from mergekit_lite.kernels.lora import low_rank_tile, strips

PLAIN = "plain"
"""Scheme of a factor that is stored as it is, in fp32."""
_NAME = re.compile(r"product\((\w+),(\w+)\)")


def encoded(left: Encoded, right: Encoded, rank: int, scale: float) -> Encoded:
    """Return two compressed factors, (rows x rank) and (rank x width), as one tensor.

    Args:
        left, right: the factors.
        rank: of the product.
        scale: what it is multiplied by.
    """
    parts: dict[str, NDArray[Any]] = {}
    numbers = {"rank": float(rank), "factor": scale}
    for name, factor in (("left", left), ("right", right)):
        parts |= {f"{name}.{key}": value for key, value in factor.parts.items()}
        numbers |= {f"{name}.{key}": value for key, value in factor.numbers.items()}
    return Encoded(f"product({left.scheme},{right.scheme})", parts, numbers)


def plain(values: Floats) -> Encoded:
    """Return a factor stored as it is."""
    return Encoded(PLAIN, {"values": values})


def product_scheme(name: str) -> Scheme | None:
    """Return the scheme of products of factors in two schemes; None if `name` says no such."""
    match = _NAME.fullmatch(name)
    if match is None or any(one != PLAIN and one not in SCHEMES for one in match.groups()):
        return None
    kernels = [low_rank_tile]
    for one in match.groups():
        kernels += SCHEMES[one].kernels if one != PLAIN else ()

    def decoder(packed: Packed, fetch: Fetch) -> Product:
        return Product(packed, fetch, match.groups())

    return Scheme(name, decoder, tuple(dict.fromkeys(kernels)), _held)


def _held(packed: Packed) -> int:
    """Return the bytes of both factors in fp32, and of copies that make them."""
    return 12 * int(packed.numbers.get("rank", 0)) * sum(packed.shape)


class Product:
    """Multiplies out what is asked for; both factors are in memory."""

    def __init__(self, packed: Packed, fetch: Fetch, schemes: tuple[str, ...]) -> None:
        if len(packed.shape) != 2:
            raise DataError(f"a product of a {packed.shape} tensor", packed.name)
        (rows, self._width), rank = packed.shape, int(packed.number("rank"))
        left = _factor(packed, "left", (rows, rank), schemes[0], fetch)
        right = _factor(packed, "right", (rank, self._width), schemes[1], fetch)
        self._left, self._right = left, strips(right)
        self._scale = np.float32(packed.number("factor"))

    def fill(self, first: int, out: Floats) -> None:
        low_rank_tile(self._left, self._right, self._scale, self._width, first, out.size, out)


def _factor(packed: Packed, name: str, shape: tuple[int, int], scheme: str, fetch: Fetch) -> Floats:
    begin = f"{name}."
    parts = {k[len(begin) :]: info for k, info in packed.parts.items() if k.startswith(begin)}
    numbers = {k[len(begin) :]: n for k, n in packed.numbers.items() if k.startswith(begin)}
    inner = Packed(packed.name, shape, scheme, numbers, parts)
    out = np.zeros(prod(shape), np.float32)
    if scheme == PLAIN:
        out[:] = fetched(fetch, inner.part("values", "F32", out.size)).view(np.float32)
    else:
        SCHEMES[scheme].decoder(inner, fetch).fill(0, out)
    return out.reshape(shape)
