"""`sum(SHARED,OWN)`: what several patches share, and what one adds to it.

Parts and numbers of the first begin with `shared.`; its parts lie in the file beside the patch.
"""

from __future__ import annotations

import re

import numpy as np

from mergekit_lite.checkpoint.coded.grid import Fetch
from mergekit_lite.checkpoint.patch import Packed
from mergekit_lite.checkpoint.patch_shared import PREFIX
from mergekit_lite.compress._spec import SCHEMES
from mergekit_lite.compress._types import Encoded, Floats, Scheme

_NAME = re.compile(r"sum\((\w+),(\w+)\)")


def encoded(shared: Packed, own: Encoded) -> Encoded:
    """Return what a patch adds to what it shares; parts of the latter are not stored with it."""
    numbers = {f"{PREFIX}{key}": value for key, value in shared.numbers.items()}
    return Encoded(f"sum({shared.scheme},{own.scheme})", own.parts, {**numbers, **own.numbers})


def sum_scheme(name: str) -> Scheme | None:
    """Return the scheme of sums of two schemes; None if `name` says no such."""
    match = _NAME.fullmatch(name)
    if match is None or any(one not in SCHEMES for one in match.groups()):
        return None
    shared, own = (SCHEMES[one] for one in match.groups())

    def decoder(packed: Packed, fetch: Fetch) -> Summed:
        return Summed(packed, fetch, shared, own)

    def held(packed: Packed) -> int:
        first, second = parts_of_sum(packed, shared.name, own.name)
        return shared.held(first) + own.held(second)

    return Scheme(name, decoder, tuple(dict.fromkeys(shared.kernels + own.kernels)), held)


def parts_of_sum(packed: Packed, shared: str, own: str) -> tuple[Packed, Packed]:
    """Return both parts of a sum, each as its scheme stores it."""
    first = {key.removeprefix(PREFIX): i for key, i in packed.parts.items() if _is_shared(key)}
    numbers = {key.removeprefix(PREFIX): n for key, n in packed.numbers.items() if _is_shared(key)}
    second = {key: info for key, info in packed.parts.items() if not _is_shared(key)}
    others = {key: n for key, n in packed.numbers.items() if not _is_shared(key)}
    return (
        Packed(packed.name, packed.shape, shared, numbers, first),
        Packed(packed.name, packed.shape, own, others, second),
    )


def _is_shared(key: str) -> bool:
    return key.startswith(PREFIX)


class Summed:
    """Adds what both decode."""

    def __init__(self, packed: Packed, fetch: Fetch, shared: Scheme, own: Scheme) -> None:
        first, second = parts_of_sum(packed, shared.name, own.name)
        self._shared, self._own = shared.decoder(first, fetch), own.decoder(second, fetch)

    def fill(self, first: int, out: Floats) -> None:
        self._shared.fill(first, out)
        beside = np.empty_like(out)
        self._own.fill(first, beside)
        out += beside
